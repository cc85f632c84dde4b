"""What a run of the improvement loop says: typed events, and the records that they carry."""

from dataclasses import dataclass, field
from typing import Literal

from app.engines.base import Delta, FinishReason
from app.errors import AppError
from app.improve.edits import Hunk
from app.improve.keep import Violation
from app.improve.turns import Phase, StrategyName

StopReason = Literal["gap", "patience", "max_iterations", "token_budget", "deadline", "cancelled", "error"]
Scoring = Literal["gap", "skipped", "off"]
CandidateFinish = FinishReason | Literal["deadline", "cancelled", "token_budget"]


@dataclass(slots=True)
class TokenCount:
    """Tokens of some generations. `cached_tokens` are those of the prompt that the prefix cache held."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def count(self, delta: Delta) -> None:
        """Count a piece of one generation, whose prompt's tokens are in already where they were known."""
        self.completion_tokens += delta.tokens
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.prompt_tokens = delta.prompt_tokens or self.prompt_tokens

    def since(self, before: "TokenCount") -> "TokenCount":
        """What has come since it was `before`."""
        return TokenCount(
            self.prompt_tokens - before.prompt_tokens,
            self.completion_tokens - before.completion_tokens,
            self.cached_tokens - before.cached_tokens,
        )

    def add(self, other: "TokenCount") -> None:
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens


@dataclass(slots=True)
class Usage:
    """Tokens of a run by what they were for. `score` counts what the gap reward read."""

    draft: TokenCount = field(default_factory=TokenCount)
    improve: TokenCount = field(default_factory=TokenCount)
    score: TokenCount = field(default_factory=TokenCount)

    @property
    def total_tokens(self) -> int:
        return self.draft.total + self.improve.total + self.score.total


@dataclass(slots=True)
class Candidate:
    """One attempt at a better response, while it grows."""

    number: int
    text: str = ""
    finish_reason: CandidateFinish | None = None
    usage: TokenCount = field(default_factory=TokenCount)
    violations: tuple[Violation, ...] = ()


@dataclass(frozen=True, slots=True)
class Iteration:
    """One finished iteration; `candidate` is the number of the one that it stands for.

    `gap` and `win_probability` are None when the candidate was not scored. `usage` is what all candidates
    read and wrote, `score_tokens` what the gap reward read for them. `violations`: the constraints that the
    candidate breaks. `edits`, where the request asked for them, turn the iteration's baseline into `text`.
    """

    index: int
    text: str
    gap: float | None
    win_probability: float | None
    accepted: bool
    finish_reason: CandidateFinish | None
    candidate: int
    usage: TokenCount
    score_tokens: int
    ms: float
    violations: tuple[Violation, ...] = ()
    edits: tuple[Hunk, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a run ends with. `response` is the best response, which is the reference unless something
    passed.

    `violations`: the constraints that the response breaks, which only a reference can that nothing replaced.
    `edits`, where the request asked for them, turn the reference into the response.
    """

    id: str
    created: int
    strategy: StrategyName
    response: str
    improved: bool
    reference: str
    iterations: list[Iteration]
    stop_reason: StopReason
    usage: Usage
    models: dict[str, str]
    identities: dict[str, str]
    scoring: Scoring
    seed: int
    ms: float
    violations: tuple[Violation, ...] = ()
    edits: tuple[Hunk, ...] | None = None


@dataclass(frozen=True, slots=True)
class RunCreated:
    id: str
    created: int
    strategy: StrategyName
    scoring: Scoring
    seed: int
    reference: str | None


@dataclass(frozen=True, slots=True)
class IterationStarted:
    index: int
    baseline: str


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """A piece of text. `index` 0 is the draft of the reference."""

    index: int
    candidate: int
    phase: Phase
    text: str


@dataclass(frozen=True, slots=True)
class CandidateRejected:
    """A candidate that breaks constraints: it is not scored."""

    index: int
    candidate: int
    violations: tuple[Violation, ...]


@dataclass(frozen=True, slots=True)
class CandidateScored:
    index: int
    candidate: int
    gap: float
    win_probability: float


@dataclass(frozen=True, slots=True)
class ScoringSkipped:
    """The run goes on, or ends, without the gap reward. `index` 0: it never had one that answers."""

    index: int
    message: str


@dataclass(frozen=True, slots=True)
class IterationAccepted:
    iteration: Iteration


@dataclass(frozen=True, slots=True)
class IterationRejected:
    iteration: Iteration


@dataclass(frozen=True, slots=True)
class RunCompleted:
    result: Result


@dataclass(frozen=True, slots=True)
class RunFailed:
    error: AppError


Event = (
    RunCreated
    | IterationStarted
    | OutputDelta
    | CandidateRejected
    | CandidateScored
    | ScoringSkipped
    | IterationAccepted
    | IterationRejected
    | RunCompleted
    | RunFailed
)
