"""The gap reward behind vLLM's pooling server: raw logits by /classify, or by /pooling where that is all
there is."""

import asyncio
from collections.abc import Sequence
from typing import Any

from app.engines.base import Comparison, Scores
from app.engines.chat import comparison_chat
from app.engines.remote import TOKENIZE, beginning
from app.engines.together import together
from app.engines.upstream import NOT_THERE, UpstreamPool
from app.errors import AppError, BadRequest, ContextTooLong, EngineFailed, ScoringUnavailable

CLASSIFY, POOLING = "/classify", "/pooling"


class RemoteScorer:
    """See `Scorer` for what the methods promise. `improve_turn` None: the model reads the candidate alone."""

    def __init__(
        self,
        pool: UpstreamPool,
        model: str,
        context_length: int,
        improve_turn: str | None,
        *,
        path: str = CLASSIFY,
        timeout_s: float,
    ) -> None:
        self.pool, self.model_id, self.context_length = pool, model, context_length
        self._improve_turn, self._path, self._timeout_s = improve_turn, path, timeout_s

    async def encode(self, comparison: Comparison) -> list[int]:
        body = {
            "model": self.model_id,
            "messages": comparison_chat(comparison, self._improve_turn),
            "add_generation_prompt": False,
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self.pool.post(TOKENIZE, body)
            return [int(token) for token in answer["tokens"]]
        except BadRequest:
            raise
        except TimeoutError:
            raise self._late() from None
        except (AppError, KeyError, TypeError, ValueError) as error:
            raise ScoringUnavailable("The gap reward's upstream cannot tokenize this response.") from error

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await together([self._score(comparison) for comparison in comparisons])
        except TimeoutError:
            raise self._late() from None
        except ContextTooLong:
            raise ContextTooLong(
                "The conversation with both responses is too long for the gap reward, whose context holds"
                f" {self.context_length} tokens. Shorten the messages or the responses.",
                param="messages",
            ) from None
        except AppError as error:
            raise ScoringUnavailable(
                "The gap reward failed to score this response. Try again, or send scoring: best_effort."
            ) from error
        return Scores([value for value, _ in found], sum(tokens for _, tokens in found))

    def _late(self) -> ScoringUnavailable:
        return ScoringUnavailable(
            f"The gap reward did not answer within {self._timeout_s:g} s. Try again, or send scoring:"
            " best_effort."
        )

    async def check_health(self) -> None:
        try:
            self.pool.check_health()
        except EngineFailed as error:
            message = f"{error.message} Start it again, or send scoring: best_effort."
            raise ScoringUnavailable(message) from None

    async def close(self) -> None:
        await self.pool.close()

    async def _score(self, comparison: Comparison) -> tuple[float, int]:
        """The raw logit of one comparison, and the tokens that were read."""
        body: dict[str, Any] = {
            "model": self.model_id,
            "messages": comparison_chat(comparison, self._improve_turn),
            "use_activation": False,
        }
        if self._path == POOLING:
            body["task"] = "classify"
        answer = await self.pool.post(self._path, body, beginning(comparison.messages))
        try:
            row = answer["data"][0]
            (value,) = row["probs"] if self._path == CLASSIFY else row["data"]
            return float(value), int(answer["usage"]["prompt_tokens"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineFailed("The upstream gave no score, or more than one label.") from None


async def scoring_path(pool: UpstreamPool, model: str) -> str:
    """The route that this pool scores by. Raises `AppError` when there is none."""
    body = {"model": model, "input": "Hello", "use_activation": False}
    try:
        await pool.post(CLASSIFY, body)
        return CLASSIFY
    except EngineFailed as error:
        if error.code != NOT_THERE:
            raise
    await pool.post(POOLING, {**body, "task": "classify"})
    return POOLING
