"""The exceptions of the server, and how each becomes an OpenAI-shaped error.

    AppError                    500  api_error
    ├── BadRequest              400  invalid_request_error
    │   └── ContextTooLong      400  code context_length_exceeded
    ├── Unauthorized            401  authentication_error
    ├── Forbidden               403  permission_error
    ├── NotFound                404  invalid_request_error
    ├── MethodNotAllowed        405  invalid_request_error
    ├── Conflict                409  conflict_error
    ├── TooLarge                413  invalid_request_error
    ├── KeyReused               422  invalid_request_error
    ├── RateLimited             429  rate_limit_error
    ├── Overloaded              503  overloaded_error
    │   └── ScoringUnavailable  503  code scoring_unavailable
    ├── DeadlineExceeded        504  timeout_error
    └── EngineFailed            500  engine_error
    CheckpointError             start-up only: never reaches a client
    StoreError                  start-up only, too

A message says what, which value, and what to do. It holds neither the text of another exception nor any
part of a prompt: whoever raises one of these writes the message for the client's eyes.
"""

from typing import Any

STATUS_CLIENT_CLOSED = 499
"""Counted and logged for a client that went away; nobody reads it."""


class AppError(Exception):
    """An error that a client may see. `message` is shown as it is; `param` names the field of the request."""

    status = 500
    type = "api_error"
    code: str | None = "internal_error"
    retry_after: int | None = None
    request_id: str | None = None
    """Of the answer that brought it, where a client reads one (app/client)."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers that go with the error: `Retry-After` where trying again makes sense."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


class BadRequest(AppError):
    """The request cannot be served as it is; sending it again will not help."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class ContextTooLong(BadRequest):
    """The conversation does not fit into a model's context."""

    code = "context_length_exceeded"


class Unauthorized(AppError):
    """No API key, or none that is good. `challenge` is RFC 6750's: it names an error only where there was a
    key."""

    status, type, code = 401, "authentication_error", "invalid_api_key"

    def __init__(self, message: str, *, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.challenge = challenge

    def headers(self) -> dict[str, str]:
        return super().headers() | {"www-authenticate": self.challenge}


class Forbidden(AppError):
    """A good key that lacks a scope."""

    status, type, code = 403, "permission_error", "insufficient_scope"

    def __init__(self, message: str, *, scope: str | None = None) -> None:
        super().__init__(message)
        self.scope = scope

    def headers(self) -> dict[str, str]:
        if self.scope is None:
            return super().headers()
        challenge = f'Bearer error="insufficient_scope", scope="{self.scope}"'
        return super().headers() | {"www-authenticate": challenge}


class NotFound(AppError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(AppError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class Conflict(AppError):
    """The request cannot be served in the state in which its object is; later it may."""

    status, type, code = 409, "conflict_error", "conflict"


class RequestTimeout(AppError):
    """The request did not arrive in time."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class HeadersTooLarge(AppError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class TooLarge(AppError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class KeyReused(AppError):
    """An `Idempotency-Key` that came with another request before."""

    status, type, code = 422, "invalid_request_error", "idempotency_key_reused"


class RateLimited(AppError):
    status, type, code, retry_after = 429, "rate_limit_error", "rate_limit_exceeded", 1


class Overloaded(AppError):
    """The server cannot take the request now: it starts, it stops, or it is full."""

    status, type, code, retry_after = 503, "overloaded_error", "overloaded", 5


class ScoringUnavailable(Overloaded):
    """Scoring was required, and there is no gap reward, or it failed."""

    code = "scoring_unavailable"


class DeadlineExceeded(AppError):
    """The request's deadline passed before there was any response to give."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"


class EngineFailed(AppError):
    """The engine died or answered with nonsense."""

    status, type, code = 500, "engine_error", "engine_failed"


class CheckpointError(Exception):
    """A checkpoint directory that cannot be served. The message says what, which value, and what to do."""


class StoreError(Exception):
    """A database that cannot be used. The message says what, which value, and what to do."""


INTERNAL_ERROR_MESSAGE = (
    "The server failed to handle this request. The x-request-id header names it in the server's log."
)
_BY_STATUS = {
    cls.status: cls
    for cls in (
        Unauthorized,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        RequestTimeout,
        TooLarge,
        HeadersTooLarge,
        RateLimited,
        Overloaded,
        DeadlineExceeded,
    )
}


def from_status(status: int, path: str, method: str) -> AppError:
    """The error for an HTTP status that the framework raised by itself (an unknown route, a wrong method)."""
    shown = printable(path)
    if status == 404:
        return NotFound(f"There is nothing at {shown}. The routes are listed at /openapi.json.")
    if status == 405:
        return MethodNotAllowed(f"{shown} does not answer {method}. The Allow header lists what it answers.")
    if status in _BY_STATUS:
        return _BY_STATUS[status](f"The request was refused with status {status}.")
    if 400 <= status < 500:
        error: AppError = BadRequest(
            "The request could not be read. Send a JSON object with the fields that /openapi.json lists."
        )
        error.status = status
        return error
    return AppError(INTERNAL_ERROR_MESSAGE)


def printable(text: str) -> str:
    """A client's text as it may appear in an error: short, and encodable."""
    return text[:200].encode("utf-8", "backslashreplace").decode()
