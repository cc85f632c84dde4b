"""Requests and the answer of `/v1/feedback`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.schemas import Messages, RequestModel, ResponseModel, Text


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty, and no response")
    return text


Response = Annotated[Text, AfterValidator(_says_something)]
RunId = Annotated[Text, Field(max_length=64, description="id of a stored run that has ended")]
Which = Literal["reference", "response"] | Annotated[int, Field(ge=1, le=1000, strict=True)]
"""A response of a run: what it started from, what it ended with, or the number of an iteration."""


class Comparison(RequestModel):
    """Of two responses of a run, which one was preferred."""

    type: Literal["comparison"]
    run: RunId
    preferred: Which
    other: Which


class Edits(RequestModel):
    """Which hunks of the edit view were accepted: positions in `edits`, from 0. `response` says whose edits:
    the run's own, or those of an iteration."""

    type: Literal["edits"]
    run: RunId
    accepted: list[Annotated[int, Field(ge=0)]] = Field(max_length=10_000)
    response: Literal["response"] | Annotated[int, Field(ge=1, le=1000, strict=True)] = "response"


class Rating(RequestModel):
    """How good a response of a run is, from 1 (bad) to 5 (good)."""

    type: Literal["rating"]
    run: RunId
    rating: int = Field(ge=1, le=5)
    response: Which = "response"


class Correction(RequestModel):
    """What a person made of a response of a run."""

    type: Literal["correction"]
    run: RunId
    text: Response
    response: Which = "response"


class Texts(RequestModel):
    """Two responses from anywhere, and which one was preferred."""

    type: Literal["texts"]
    messages: Messages
    preferred: Response
    other: Response


FeedbackRequest = Annotated[
    Comparison | Edits | Rating | Correction | Texts, Field(discriminator="type")
]


FeedbackType = Literal["comparison", "edits", "rating", "correction", "texts"]


class FeedbackOut(ResponseModel):
    """Feedback as it is stored. `pairs` are the preference pairs that it makes."""

    id: str
    object: Literal["feedback"] = "feedback"
    created: int
    type: FeedbackType
    run: str | None
    pairs: int


class StoredFeedback(FeedbackOut):
    """Feedback in a list. `said` is what the request said beside `type` and `run`, without texts;
    `replaced_by` is the later feedback about the same: this one makes no pairs any more."""

    said: dict[str, Any]
    replaced_by: str | None


class FeedbackList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[StoredFeedback]
    has_more: bool
