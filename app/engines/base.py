"""The two protocols that the core is written against: an `Engine` generates text, a `Scorer` compares two
responses."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from app.checkpoint import SamplingDefaults

FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion. `seed` None: a fresh one every time; `max_tokens` is at least 1."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion. The last one carries `finish_reason`; `tokens` counts the end token too."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The gap reward's input: does `candidate` answer `messages` better than `baseline`?"""

    messages: tuple[Message, ...]
    candidate: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw r_gap logits, one for each comparison (not centred), and the tokens that were read for them."""

    values: list[float]
    tokens: int


class Engine(Protocol):
    """A language model that generates. Implementations are safe for many concurrent calls."""

    context_length: int
    """Tokens of prompt and completion together."""
    defaults: SamplingDefaults
    model_id: str
    """The checkpoint's name, for the response's `models`."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation with the generation prompt. Raises `BadRequest` if it
        cannot be rendered."""

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream one completion; the special end token is counted, not shown.

        Closing the generator, or cancelling the task that awaits it, aborts the generation in the engine.
        Raises `EngineFailed`.
        """

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-probability (natural log, temperature 1) of each completion id after the prompt. Raises
        `EngineFailed`."""

    async def check_health(self) -> None:
        """Return when the engine can work. Raises `EngineFailed`."""

    async def close(self) -> None:
        """Stop the engine and its processes. Calling it again does nothing."""


class Scorer(Protocol):
    """The gap reward. Raw logits only: centring and calibration are the gate's."""

    context_length: int
    model_id: str

    def encode(self, comparison: Comparison) -> list[int]:
        """Token ids of the gap reward's input, without a generation prompt."""

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        """Score a batch. Raises `ContextTooLong` for an input over `context_length`, `ScoringUnavailable`
        otherwise."""

    async def close(self) -> None:
        """Free the model. Calling it again does nothing."""
