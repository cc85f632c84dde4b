"""The improvement loop's events as JSON, and as Server-Sent Events."""

import json
from collections.abc import Callable
from dataclasses import asdict
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
from app.telemetry import log_failure

dumps: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
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


def payload(event: Event) -> dict[str, Any]:
    """The `data` of an event, its type and its fields; that of run.completed and run.failed is the run's own
    end."""
    body: dict[str, Any] = {"type": NAMES[type(event)]}
    match event:
        case IterationAccepted() | IterationRejected():
            body["iteration"] = asdict(event.iteration)
        case _:
            body |= asdict(event)
    return body


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
