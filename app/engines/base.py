"""The two protocols that the core is written against: an `Engine` generates text, a `Scorer` compares two
responses."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from app.checkpoint import SamplingDefaults

FinishReason = Literal["stop", "length", "tool_calls"]


class Message(TypedDict):
    """One turn of a conversation. The last three only where a client of the chat API uses tools."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that the model may call, in OpenAI's form: each `{"type": "function", "function": {...}}`.

    `choice` says whether it may or must call any, or names one that it must call:
    `{"type": "function", "function": {"name": ...}}`.
    """

    functions: tuple[Mapping[str, Any], ...]
    choice: Literal["auto", "none", "required"] | Mapping[str, Any] = "auto"
    parallel: bool = True
    """Whether the model may call several at once."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one engine reads, made by its `prepare`; another engine cannot use it."""

    content: object
    """The engine's own: token ids, or the messages as an upstream takes them."""
    tokens: int | None
    """Its length. None: the engine cannot say before it has read it, and `Delta.prompt_tokens` does then."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that the text must have: JSON of this schema, or with `schema` None any JSON object."""

    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion. `seed` None: a fresh one every time; `max_tokens` is at least 1.

    `logprobs`: how many alternatives to report beside each chosen token; None reports nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, its log-probability (natural log), and the likeliest tokens in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call. The first of each `index` has `id` and `name`; `arguments` are pieces of JSON."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion. The last one carries `finish_reason`; `tokens` counts the end token too.

    `prompt_tokens` is what the engine read, where `Prompt.tokens` could not say it.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    prompt_tokens: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()


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

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        """The conversation, with the generation prompt, as `generate` reads it.

        `count`: `Prompt.tokens` has to be known, whatever that costs. An engine that cannot tokenize gives
        an upper bound then. Raises `BadRequest` if the conversation cannot be rendered, `EngineFailed`.
        """

    async def prepare_text(self, text: str | Sequence[int]) -> Prompt:
        """A text, or its token ids, that `generate` continues: no conversation, no template."""

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads for a conversation, for the golden check. Raises `BadRequest`,
        `EngineFailed`."""

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream one completion; the special end token is counted, not shown.

        Closing the generator, or cancelling the task that awaits it, aborts the generation in the engine.
        Raises `EngineFailed`; `ContextTooLong` for a prompt whose length was not known before.
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

    async def encode(self, comparison: Comparison) -> list[int]:
        """Token ids of the gap reward's input, without a generation prompt. Raises `BadRequest` if it cannot
        be rendered, `ScoringUnavailable`."""

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        """Score a batch. Raises `ContextTooLong` for an input over `context_length`, `ScoringUnavailable`
        otherwise."""

    async def check_health(self) -> None:
        """Return when the scorer can work, for all that is known: it is asked before every run, so nothing is
        scored for it. Raises `ScoringUnavailable`, whose message says what to do."""

    async def close(self) -> None:
        """Free the model. Calling it again does nothing."""
