"""The improvement loop's events as JSON, and as Server-Sent Events."""

import json
from collections.abc import Callable
from typing import Any

from app.errors import INTERNAL_ERROR_MESSAGE, AppError
from app.improve.events import (
    CandidateRejected,
    CandidateScored,
    Event,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    OutputDelta,
    Result,
    RunCreated,
    ScoringSkipped,
)
from app.schemas import Improvement
from app.store.records import dumps as dumps  # what is stored is sent as it is: one form for both
from app.telemetry import log_failure

NAMES: dict[type[Any], str] = {
    RunCreated: "run.created",
    IterationStarted: "iteration.started",
    OutputDelta: "output.delta",
    CandidateRejected: "candidate.rejected",
    CandidateScored: "candidate.scored",
    ScoringSkipped: "scoring.skipped",
    IterationAccepted: "iteration.accepted",
    IterationRejected: "iteration.rejected",
}


def improvement(result: Result, metadata: dict[str, str] | None, *, stored: bool) -> Improvement:
    """The response of `/v1/improve`."""
    answer = Improvement.model_validate(result)
    answer.metadata, answer.stored = metadata, stored
    return answer


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass inside of an event. `asdict` would copy all of it first."""
    return {name: getattr(value, name) for name in type(value).__slots__}


_dumps: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), default=_fields
).encode


def event_json(event: Event) -> str:
    """An event as JSON text, its type first. Those of run.completed and run.failed are the run's own end."""
    return _dumps({"type": NAMES[type(event)]} | _fields(event))


def frame(data: str, number: int) -> bytes:
    """An event of a run, as JSON text, in the stream; its name is the type that the text begins with."""
    return sse(data, name=data[len('{"type":"') : data.index('"', len('{"type":"'))], number=number)


def sse(data: str, *, name: str | None = None, number: int | None = None) -> bytes:
    """One Server-Sent Event. JSON text has no line break, so one data line is enough."""
    head = (f"id: {number}\n" if number is not None else "") + (f"event: {name}\n" if name else "")
    return f"{head}data: {data}\n\n".encode()


def shown(error: Exception) -> AppError:
    """The error that a client sees when a stream breaks. What was not made for its eyes is logged instead."""
    if isinstance(error, AppError):
        return error
    log_failure("a stream", error)
    return AppError(INTERNAL_ERROR_MESSAGE)
