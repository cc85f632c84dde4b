"""Requests and responses of the HTTP interface. Unknown fields are refused, never ignored."""

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.engines.base import Message
from app.improve.events import CandidateFinish, Scoring, StopReason
from app.improve.keep import Keep, LengthRatio, LengthUnit
from app.improve.options import Options, ScoringMode
from app.improve.turns import DEFAULT_RUBRIC, StrategyName

UNWATCHED = 16
"""Tokens of a piece where nobody reads along: every piece passes the loop and the record of the run."""


class RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ResponseModel(BaseModel):
    model_config = ConfigDict(from_attributes=True)


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text: send valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(
            "is empty: leave the field out to have a first response drafted, or send the text to improve"
        )
    return text


class TextPart(RequestModel):
    type: Literal["text"]
    text: Text


class ChatMessage(RequestModel):
    """One turn. `content` is text, or a list of text parts."""

    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart]

    def text(self) -> str:
        """Parts are joined as vLLM joins them."""
        return self.content if isinstance(self.content, str) else "\n".join(p.text for p in self.content)


def _ends_with_user(messages: list[ChatMessage]) -> list[ChatMessage]:
    if messages[-1].role != "user":
        raise ValueError("must end with a message of the user; send a response to improve as `reference`")
    return messages


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=1000), AfterValidator(_ends_with_user)]
StopText = Annotated[Text, Field(min_length=1, max_length=200)]
Stop = StopText | Annotated[list[StopText], Field(max_length=4)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class LengthRatioOptions(RequestModel):
    """Bounds of the length of a candidate over the reference's."""

    min: float | None = Field(default=None, ge=0, le=1000)
    max: float | None = Field(default=None, gt=0, le=1000)
    unit: LengthUnit = "characters"


def _plain_json(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("nests too deep, or holds NaN or half a surrogate pair") from None
    return schema


PlainJson = Annotated[dict[str, Any], AfterValidator(_plain_json)]


class KeepOptions(RequestModel):
    """What every accepted response must hold (docs/improve.md, "Must-keep constraints")."""

    json_schema: PlainJson | None = None
    quotes: list[Annotated[Text, Field(min_length=1)]] = Field(default=[], max_length=100)
    quoted: bool = False
    length_ratio: LengthRatioOptions | None = None

    def keep(self) -> Keep | None:
        """The core's constraints; None when there is none."""
        ratio = self.length_ratio
        keep = Keep(
            self.json_schema,
            tuple(self.quotes),
            self.quoted,
            None if ratio is None else LengthRatio(ratio.min, ratio.max, ratio.unit),
        )
        return None if keep == Keep() else keep


class LoopOptions(RequestModel):
    """The options of the improvement loop, as /v1/improve and the `pit` object of a chat completion take
    them."""

    max_iterations: int = Field(default=3, ge=1, le=20)
    candidates: int = Field(default=1, ge=1, le=16)
    strategy: StrategyName = "pit"
    scoring: ScoringMode = "best_effort"
    min_win_probability: float = Field(default=0.5, ge=0, le=1)
    patience: int = Field(default=1, ge=1, le=20)
    max_total_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000)
    rubric: Annotated[str, AfterValidator(_encodable), Field(min_length=1, max_length=4000)] = DEFAULT_RUBRIC
    keep: KeepOptions | None = None


class SamplingOptions(RequestModel):
    """None: as the checkpoint's generation_config.json recommends."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: Seed | None = None
    stop: Stop | None = None

    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ImproveRequest(LoopOptions, SamplingOptions):
    """`POST /v1/improve`."""

    messages: Messages
    reference: Annotated[Text, AfterValidator(_not_blank)] | None = None
    stream: bool = False
    store: bool | None = Field(default=None, description="keep the run; null: as the server is set")
    metadata: dict[str, Text] | None = Field(default=None, max_length=16)
    view: Literal["text", "edits"] = Field(default="text", description="edits: differences too, as hunks")

    def options(self) -> Options:
        options = make_options(self.messages, self, self, self.max_tokens, self.reference)
        interval = 1 if self.stream else UNWATCHED
        return replace(options, edits=self.view == "edits", stream_interval=interval)


class ScoreRequest(RequestModel):
    """`POST /v1/score`: does `candidate`, or each of several, answer better than `baseline`?"""

    messages: Messages
    candidate: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
    baseline: Text


def make_options(
    messages: list[ChatMessage],
    loop: LoopOptions,
    sampling: SamplingOptions,
    max_tokens: int | None,
    reference: str | None,
) -> Options:
    """The core's options of a request."""
    return Options(
        messages=tuple(Message(role=m.role, content=m.text()) for m in messages),
        reference=reference,
        strategy=loop.strategy,
        max_iterations=loop.max_iterations,
        candidates=loop.candidates,
        scoring=loop.scoring,
        min_win_probability=loop.min_win_probability,
        patience=loop.patience,
        max_total_tokens=loop.max_total_tokens,
        deadline_s=None if loop.deadline_ms is None else loop.deadline_ms / 1000,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=max_tokens,
        seed=sampling.seed,
        stop=sampling.stops(),
        rubric=loop.rubric,
        keep=loop.keep.keep() if loop.keep else None,
    )


class TokenCountOut(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsageOut(ResponseModel):
    draft: TokenCountOut
    improve: TokenCountOut
    score: TokenCountOut
    total_tokens: int


class ViolationOut(ResponseModel):
    """A must-keep constraint that a text breaks, and how."""

    constraint: str
    message: str


class HunkOut(ResponseModel):
    """An edit: `before`, the characters [start, end) of the old text, becomes `after`."""

    op: Literal["replace", "insert", "delete"]
    start: int
    end: int
    before: str
    after: str


class IterationOut(ResponseModel):
    """One iteration; `candidate` is the number of the chosen one. `usage` is what all candidates read and
    wrote, `score_tokens` what the gap reward read."""

    index: int
    text: str
    gap: float | None
    win_probability: float | None
    accepted: bool
    finish_reason: CandidateFinish | None
    candidate: int
    usage: TokenCountOut
    score_tokens: int
    ms: float
    violations: list[ViolationOut] = []
    edits: list[HunkOut] | None = None


class Improvement(ResponseModel):
    """The answer of `/v1/improve`; the fields of `Result` in the core, with `object`, `metadata` and whether
    the run is stored. `identities` are content hashes of the models, where their manifests hold one."""

    id: str
    object: Literal["improvement"] = "improvement"
    created: int
    strategy: StrategyName
    response: str
    improved: bool
    reference: str
    iterations: list[IterationOut]
    stop_reason: StopReason
    usage: UsageOut
    models: dict[str, str]
    identities: dict[str, str]
    scoring: Scoring
    seed: int
    ms: float
    violations: list[ViolationOut] = []
    edits: list[HunkOut] | None = None
    metadata: dict[str, str] | None = None
    stored: bool = False


class RunSummary(ResponseModel):
    """A stored run in a list. `created` and `finished` are seconds since the epoch; `excerpt` is the
    beginning of the last message, `win_probability` that of the iteration accepted last."""

    id: str
    object: Literal["improvement.run"] = "improvement.run"
    created: int
    finished: int | None
    state: Literal["running", "completed", "failed", "cancelled"]
    stop_reason: StopReason | None
    iterations: int | None
    excerpt: str = ""
    improved: bool | None = None
    win_probability: float | None = None


class RunList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[RunSummary]
    has_more: bool


class StoredRun(ResponseModel):
    """`GET /v1/improve/{id}`. `request` is what was sent, without `stream` and with the run's seed: sent
    again, it gives the same run."""

    id: str
    object: Literal["improvement.run"] = "improvement.run"
    created: int
    finished: int | None
    state: Literal["running", "completed", "failed", "cancelled"]
    request: dict[str, Any]
    result: Improvement | None
    error: "ErrorBody | None"


class Score(ResponseModel):
    object: Literal["score"] = "score"
    gap: float
    win_probability: float
    model: str


class ScoreList(ResponseModel):
    """One score for each candidate, in their order."""

    object: Literal["list"] = "list"
    data: list[Score]


class ErrorBody(ResponseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(ResponseModel):
    """The body of every error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut}
    for status in (400, 401, 403, 404, 405, 408, 409, 413, 429, 431, 500, 503, 504, "4XX", "5XX")
}
"""Of every operation: `create_app` adds them. 4XX stands in place of the framework's own 422."""
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
}
"""Of operations that answer with Server-Sent Events where the request says `stream`."""
