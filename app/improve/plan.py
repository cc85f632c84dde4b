"""A run before it starts: every choice that follows from the request and the models, and every refusal."""

from app.engines.base import Comparison
from app.errors import AppError, BadRequest, ContextTooLong, ScoringUnavailable
from app.improve import turns
from app.improve.events import Scoring
from app.improve.gate import Gate
from app.improve.keep import Checks
from app.improve.options import Models, Options
from app.improve.prompts import Prompts
from app.improve.turns import ModelName, Strategy, Turn


class Plan:
    """What follows from a request and the models. Make it with `Plan.make`."""

    @classmethod
    async def make(cls, models: Models, options: Options) -> "Plan":
        """Raises `BadRequest`, `ContextTooLong` or `ScoringUnavailable` for what cannot be served, before
        anything is generated."""
        problem = None if options.scoring == "off" else await _scoring_problem(models)
        plan = cls(models, options, problem)
        await plan._check_lengths()
        await plan._check_scorer_length()
        return plan

    def __init__(self, models: Models, options: Options, scoring_problem: str | None) -> None:
        """`scoring_problem`: why nothing can be scored now, None when the gap reward is up."""
        self.models, self.options = models, options
        self.scoring_problem = scoring_problem
        self.scoring: Scoring = self._scoring()
        self.strategy: Strategy = self._strategy()
        self.iteration_limit, self.width = self._limits()
        self.prompts = Prompts(models, options)
        self.checks = Checks(options.keep, options.reference) if options.keep else None
        self._check_names()

    @property
    def drafts_beside(self) -> bool:
        """Whether the first candidates can be generated beside the draft: more answers to the same prompt,
        and no budget that the draft may use up."""
        return (
            self.options.strategy == "best_of_n"
            and self.options.reference is None
            and self.options.max_total_tokens is None
        )

    def gate(self) -> Gate | None:
        """A gate for this run, or None when nothing is scored."""
        if self.scoring != "gap":
            return None
        assert self.models.scorer is not None
        return Gate(self.models.scorer, self.models.calibration, self.options.messages)

    def first_turn(self, baseline: str) -> Turn:
        """The first turn of an attempt to improve `baseline`."""
        return next(self.strategy(self.options.messages, baseline))

    def model_names(self) -> dict[str, str]:
        """The checkpoints that take part in this run, by what they do in it."""
        names: set[ModelName] = {self.first_turn("").model}
        if self.options.reference is None:
            names.add("policy")
        found: dict[str, str] = {name: self.models.engine(name).model_id for name in sorted(names)}
        if self.scoring == "gap" and self.models.scorer:
            found["gap_reward"] = self.models.scorer.model_id
        return found

    def identities(self) -> dict[str, str]:
        """The content hashes of those checkpoints, where they are known."""
        known = self.models.identities
        return {name: known[name] for name in self.model_names() if name in known}

    def _scoring(self) -> Scoring:
        if self.options.scoring == "off":
            return "off"
        if self.scoring_problem is None:
            return "gap"
        if self.options.scoring == "required":
            raise ScoringUnavailable(
                f"Scoring is required. {self.scoring_problem} Or send scoring: best_effort or off.",
                param="scoring",
            )
        return "skipped"

    def _strategy(self) -> Strategy:
        if self.options.strategy == "pit":
            return turns.pit(self.models.improve_turn)
        if self.options.strategy == "self_refine":
            return turns.self_refine(self.options.rubric)
        if self.scoring == "off":
            raise BadRequest(
                "best_of_n chooses by score: leave scoring out, or choose another strategy.", param="scoring"
            )
        if self.scoring == "skipped":
            raise ScoringUnavailable(
                f"best_of_n chooses by score. {self.scoring_problem}", param="strategy"
            )
        return turns.best_of_n()

    def _limits(self) -> tuple[int, int]:
        """How many iterations, and how many candidates in each."""
        options = self.options
        if options.strategy == "best_of_n":
            width = options.candidates - (1 if options.reference is None else 0)
            if width < 1:
                raise BadRequest(
                    "best_of_n without a reference compares candidates with each other: send candidates of"
                    " 2 or more.",
                    param="candidates",
                )
            return 1, width
        if self.scoring == "off" and options.candidates > 1:
            raise BadRequest(
                f"candidates is {options.candidates}, and with scoring off nothing can choose among them:"
                " send 1.",
                param="candidates",
            )
        if self.scoring == "skipped":
            return 1, 1
        return options.max_iterations, options.candidates

    def _check_names(self) -> None:
        """Every model that the run will need is there."""
        if self.options.reference is None:
            self.models.engine("policy")
        self.models.engine(self.first_turn("").model)

    async def _check_lengths(self) -> None:
        """The first prompts leave room for their responses, and the draft fits the token budget."""
        options = self.options
        if options.reference is None:
            # The draft is not known yet: see at least that there is room beside an empty one.
            await self.prompts.check_room(self.first_turn(""), "messages")
            draft_tokens, room = await self.prompts.check_room(turns.draft(options.messages), "messages")
            if options.max_total_tokens is not None and draft_tokens + room > options.max_total_tokens:
                raise BadRequest(
                    f"max_total_tokens is {options.max_total_tokens}, and drafting alone may take"
                    f" {draft_tokens + room}"
                    f" ({draft_tokens} to read, up to {room} to write). Raise it, or lower max_tokens.",
                    param="max_total_tokens",
                )
        else:
            empty, turn = self.first_turn(""), self.first_turn(options.reference)
            alone = await self.prompts.prepare(empty)
            fits = self.prompts.room(self.models.engine(empty.model), alone) is not None
            await self.prompts.check_room(turn, "reference" if fits else "messages")

    async def _check_scorer_length(self) -> None:
        """Where scoring is required, the gap reward can read the reference."""
        scorer, reference = self.models.scorer, self.options.reference or ""
        if self.options.scoring != "required" or scorer is None:
            return
        tokens = len(await scorer.encode(Comparison(self.options.messages, reference, reference)))
        if tokens > scorer.context_length:
            raise ContextTooLong(
                f"The conversation with its reference takes {tokens} tokens for the gap reward, whose context"
                f" holds {scorer.context_length}. Shorten them, or send scoring: best_effort.",
                param="messages",
            )


async def _scoring_problem(models: Models) -> str | None:
    """Why nothing can be scored now; None when the gap reward is up, for all that is known."""
    if models.scorer is None:
        return "This server has no gap reward: start it with --gap-reward."
    try:
        await models.scorer.check_health()
    except AppError as error:
        return error.message
    return None
