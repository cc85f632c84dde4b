"""A typed client of the server, sync and async: `Client`, `AsyncClient`, the events of a run, the errors.

    from app.client import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.improve("What does the lamp cost?", "It costs 24 euros, I think.", seed=1)
        print(answer.response, answer.improved)

It imports neither a web framework nor an engine (docs/client.md).
"""

from app.client.calls import FeedbackFields, ImproveOptions
from app.client.clients import AsyncClient, Client
from app.client.events import (
    CandidateRejected,
    CandidateScored,
    Event,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    OutputDelta,
    RunCompleted,
    RunCreated,
    ScoringSkipped,
)
from app.client.failures import NoAnswer
from app.errors import (
    AppError,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    NotFound,
    Overloaded,
    RateLimited,
    ScoringUnavailable,
    TooLarge,
    Unauthorized,
)
from app.schemas import Improvement, RunList, Score, StoredRun
from app.schemas_feedback import FeedbackList, FeedbackOut, FeedbackType

__all__ = [
    "AppError",
    "AsyncClient",
    "BadRequest",
    "CandidateRejected",
    "CandidateScored",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "EngineFailed",
    "Event",
    "FeedbackFields",
    "FeedbackList",
    "FeedbackOut",
    "FeedbackType",
    "Forbidden",
    "ImproveOptions",
    "Improvement",
    "IterationAccepted",
    "IterationRejected",
    "IterationStarted",
    "NoAnswer",
    "NotFound",
    "OutputDelta",
    "Overloaded",
    "RateLimited",
    "RunCompleted",
    "RunCreated",
    "RunList",
    "Score",
    "ScoringSkipped",
    "ScoringUnavailable",
    "StoredRun",
    "TooLarge",
    "Unauthorized",
]
