"""Answers that are errors, as exceptions: those that the server raised."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from app.errors import AppError


class NoAnswer(AppError):
    """No server answered, or not to the end: `status` is 0. Whether the request was executed is not known."""

    status, type, code = 0, "connection_error", "no_answer"


NOT_OURS = "The answer is not from pit serve."


def _kinds(kind: type[AppError] = AppError) -> Iterator[type[AppError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def raise_for(response: httpx.Response) -> None:
    """Raises what the server raised, when it refused. The body must have been read."""
    if response.is_error:
        error = failure(response.content, response.status_code)
        after = response.headers.get("retry-after", "")
        error.retry_after = int(after) if after.isdecimal() else None
        error.request_id = response.headers.get("x-request-id")
        raise error


def failure(body: bytes | str, status: int | None = None) -> AppError:
    """The exception of an error's body. In a stream there is no status: `type` and `code` say which it is."""
    try:
        said: dict[str, Any] = json.loads(body)["error"]
        message, code, type_ = str(said["message"]), said["code"], str(said["type"])
    except (ValueError, KeyError, TypeError):
        message, code, type_, said = NOT_OURS, "not_from_pit_serve", "api_error", {}
    same = [k for k in _kinds() if (k.status == status if status else k.type == type_)]
    kind = next((k for k in same if k.code == code), same[0] if same else AppError)
    error = kind(message)
    error.type, error.code, error.param = type_, code, said.get("param")
    if status:
        error.status = status
    return error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raises `NoAnswer`, in words for whoever called, where httpx could not send or read."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise NoAnswer(
            f"no server answers at {url}. Start one: pit serve --policy DIR --improver DIR --gap-reward DIR",
            code="no_server",
        ) from None
    except httpx.TimeoutException:
        raise NoAnswer(f"the server at {url} did not answer in time. /health/ready says how it is.") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise NoAnswer(f"{url} is not an address: write it as http://host:port", code="no_address") from None
    except httpx.TransportError:
        raise NoAnswer(f"the connection to {url} broke before the answer was whole.") from None
