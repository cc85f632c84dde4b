"""Requests and responses of the Files and Batches API, as OpenAI has them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.schemas import RequestModel, ResponseModel, Text

BatchEndpoint = Literal["/v1/improve", "/v1/chat/completions", "/v1/completions"]
LONGEST_WINDOW_H = 168
SHORTEST_EXPIRY_S, LONGEST_EXPIRY_S = 3600, 2_592_000
"""OpenAI's bounds of `expires_after.seconds`."""


def _in_a_week(window: str) -> str:
    if int(window[:-1]) > LONGEST_WINDOW_H:
        raise ValueError(f"is longer than {LONGEST_WINDOW_H}h: send a shorter window")
    return window


class ExpiresAfter(RequestModel):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_EXPIRY_S, le=LONGEST_EXPIRY_S)


class BatchRequest(RequestModel):
    """`POST /v1/batches`. `completion_window` is in hours; OpenAI knows 24h only."""

    input_file_id: Text
    endpoint: BatchEndpoint
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}h$"), AfterValidator(_in_a_week)]
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None = (
        Field(default=None, max_length=16)
    )
    output_expires_after: ExpiresAfter | None = None


class FileObject(ResponseModel):
    """A file. Times are seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(ResponseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class RequestCounts(ResponseModel):
    total: int
    completed: int
    failed: int


class BatchError(ResponseModel):
    """Why an input file was refused; `line` counts from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(ResponseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(ResponseModel):
    """A batch. Times are seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: BatchEndpoint
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, Any] | None


class BatchList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
