"""One request to `/v1/score`."""

import contextlib

from app.engines.base import Message
from app.engines.chat import most_tokens
from app.errors import ContextTooLong, ScoringUnavailable
from app.improve.gate import Gate
from app.improve.options import Models
from app.schemas import Score, ScoreList, ScoreRequest


class Scoring:
    """Candidates to compare with a baseline. Call `answer` once."""

    lower = "Send fewer candidates, or shorten the conversation."

    def __init__(self, models: Models, body: ScoreRequest) -> None:
        """Raises `ScoringUnavailable` where there is no gap reward."""
        if models.scorer is None:
            raise ScoringUnavailable("This server has no gap reward. Start it with --gap-reward.")
        self.body, self.scorer = body, models.scorer
        self.messages = tuple(Message(role=m.role, content=m.text()) for m in body.messages)
        self.candidates = [body.candidate] if isinstance(body.candidate, str) else body.candidate
        self.gate = Gate(models.scorer, models.calibration, self.messages)
        self.improve_turn = models.improve_turn
        self.tokens_used = 0

    async def worst_case(self, *, exact: bool) -> int:
        """Tokens that the gap reward reads, at most. Raises `BadRequest`."""
        if exact:
            with contextlib.suppress(ScoringUnavailable):  # an upstream that cannot tokenize
                return await self.gate.tokens_needed(self.candidates, self.body.baseline)
        turn = Message(role="user", content=self.improve_turn)
        texts = [Message(role="assistant", content=text) for text in (*self.candidates, self.body.baseline)]
        # Each candidate beside the baseline, in both orders or the baseline once more beside itself.
        pairs = [most_tokens([*self.messages, text, texts[-1], turn]) for text in texts]
        return 2 * sum(min(self.scorer.context_length, pair) for pair in pairs)

    async def answer(self) -> Score | ScoreList:
        """Raises `ContextTooLong` and `ScoringUnavailable`."""
        verdicts, self.tokens_used = await self.gate.judge(self.candidates, self.body.baseline)
        scores = []
        for number, verdict in enumerate(verdicts, 1):
            if verdict is None:
                which = "the candidate" if isinstance(self.body.candidate, str) else f"candidate {number}"
                raise ContextTooLong(
                    f"The conversation with both responses does not fit the gap reward's context of"
                    f" {self.scorer.context_length} tokens. Shorten {which}.",
                    param="candidate",
                )
            name = self.scorer.model_id
            scores.append(Score(gap=verdict.gap, win_probability=verdict.win_probability, model=name))
        return scores[0] if isinstance(self.body.candidate, str) else ScoreList(data=scores)
