"""The events of a run, typed, and how they are read from the bytes of a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from app.improve.events import Scoring
from app.improve.turns import Phase, StrategyName
from app.schemas import Improvement, IterationOut, ViolationOut


class RunCreated(BaseModel):
    """The first event. `reference` is None where the policy drafts one now."""

    type: Literal["run.created"]
    id: str
    created: int
    strategy: StrategyName
    scoring: Scoring
    seed: int
    reference: str | None


class ScoringSkipped(BaseModel):
    """The run goes on, or ends, without the gap reward. `index` 0: from the start."""

    type: Literal["scoring.skipped"]
    index: int
    message: str


class IterationStarted(BaseModel):
    """`baseline` is the best response so far."""

    type: Literal["iteration.started"]
    index: int
    baseline: str


class OutputDelta(BaseModel):
    """A piece of text. `index` 0 is the draft of the reference."""

    type: Literal["output.delta"]
    index: int
    candidate: int
    phase: Phase
    text: str


class CandidateRejected(BaseModel):
    """A candidate that breaks must-keep constraints: it is not scored."""

    type: Literal["candidate.rejected"]
    index: int
    candidate: int
    violations: list[ViolationOut]


class CandidateScored(BaseModel):
    type: Literal["candidate.scored"]
    index: int
    candidate: int
    gap: float
    win_probability: float


class IterationAccepted(BaseModel):
    type: Literal["iteration.accepted"]
    iteration: IterationOut


class IterationRejected(BaseModel):
    type: Literal["iteration.rejected"]
    iteration: IterationOut


class RunCompleted(BaseModel):
    """The last event, with the whole answer. A run that fails ends with an exception instead."""

    type: Literal["run.completed"]
    improvement: Improvement


Event = (
    RunCreated
    | ScoringSkipped
    | IterationStarted
    | OutputDelta
    | CandidateRejected
    | CandidateScored
    | IterationAccepted
    | IterationRejected
    | RunCompleted
)
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
KNOWN = frozenset(kind.model_fields["type"].annotation.__args__[0] for kind in Event.__args__)


@dataclass(frozen=True, slots=True)
class Frame:
    """One Server-Sent Event. `name` is empty for an error that ends a stream from outside of the run."""

    number: int
    name: str
    data: str


class Frames:
    """Bytes of a stream, in any pieces, to frames.

    Lines end with \\n alone, as the server writes them. httpx's own lines would end at U+2028 and its like
    too, which a model may write in the middle of a text.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames that are whole now; comments are left out."""
        *whole, self._rest = (self._rest + chunk).split(b"\n\n")
        for text in whole:
            fields = dict(line.split(": ", 1) for line in text.decode().split("\n") if ": " in line[1:])
            if "data" in fields:
                yield Frame(int(fields.get("id", 0)), fields.get("event", ""), fields["data"])
