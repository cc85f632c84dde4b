"""One pure ASGI middleware around everything: request id, API key, limits of the body, what a server that
stops still takes, metrics, span, one line in the log, and the last resort for exceptions."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.depth import MAX_DEPTH, too_deep
from app.errors import (
    INTERNAL_ERROR_MESSAGE,
    STATUS_CLIENT_CLOSED,
    AppError,
    BadRequest,
    RequestTimeout,
    TooLarge,
)
from app.keys import KeyRing
from app.lifecycle import Lifecycle, stopping
from app.logs import access, log_access
from app.observe import RequestState, current, trace_context
from app.settings import Settings
from app.telemetry import Telemetry, log_failure

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
UPLOAD_TIMEOUT_S = 3600.0
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
QUIET_ROUTES = frozenset(("/health", "/health/live", "/health/ready", "/metrics", "/static/{digest}/{name}"))
"""What machines ask every few seconds, and the page's files: in the log only when it fails."""
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


def error_response(error: AppError) -> JSONResponse:
    """An error as an HTTP response; its code goes into the request's line in the log."""
    if state := current.get():
        state.error = error.code
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


class RequestContext:
    """See the module. It reads the whole body before the application does: a body over the limit costs no
    more, and one without a key nothing. `uploads` are routes that read their body themselves, piece by piece,
    and its largest size."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        keys: KeyRing,
        uploads: Mapping[str, int] | None = None,
    ) -> None:
        self.app, self.settings, self.telemetry, self.lifecycle = app, settings, telemetry, lifecycle
        self.keys, self.uploads = keys, uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there are none, and none without a key
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        state = RequestState(given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}")
        state.trace = trace_context(headers)
        answer = _Answer(scope, send, state, self.telemetry)
        token = current.set(state)
        self._begin(scope, state)
        try:
            state.identity = await self.keys.admit(scope)
            with self.lifecycle.request(scope["path"]) as refused:
                limit = self.uploads.get(scope["path"]) if scope["method"] == "POST" else None
                if limit is not None and not refused:
                    reading = _limited(headers, receive, limit, self.settings.body_timeout_s, state)
                else:
                    # Read in any case: an answer before the end of the body may be lost on its way.
                    reading = _replay(await self._read_body(headers, receive), receive)
                if refused:
                    answer.closes = True
                    raise stopping()
                state.begin()
                await self.app(scope, reading, answer.send)
        except AppError as error:
            await error_response(error)(scope, receive, answer.send)
        except asyncio.CancelledError:
            if answer.status or not self.lifecycle.was_ended():
                raise
            answer.closes = True
            await error_response(stopping())(scope, receive, answer.send)
        except _ClientGone:
            self.telemetry.disconnects.labels(_route(scope)).inc()
        except Exception as error:
            state.error = type(error).__name__
            log_failure(f"request {state.request_id}", error)
            if not answer.status:
                await error_response(AppError(INTERNAL_ERROR_MESSAGE))(scope, receive, answer.send)
        finally:
            self._end(scope, state, answer)
            current.reset(token)

    def _begin(self, scope: Scope, state: RequestState) -> None:
        self.telemetry.in_flight.inc()
        if self.telemetry.tracer:
            asked = {"http.request.method": _method(scope), "pit.request.id": state.request_id}
            state.span = self.telemetry.tracer.start(
                _method(scope), asked, remote=state.trace, kind="server"
            )

    def _end(self, scope: Scope, state: RequestState, answer: "_Answer") -> None:
        telemetry, route, method = self.telemetry, _route(scope), _method(scope)
        seconds, overhead = time.perf_counter() - answer.arrived, state.overhead_s
        status = answer.status or STATUS_CLIENT_CLOSED
        telemetry.in_flight.dec()
        telemetry.requests.labels(route, method, str(status)).inc()
        telemetry.seconds.labels(route).observe(seconds)
        telemetry.overhead.labels(route).observe(overhead)
        if state.span:
            state.span.set({"http.route": route, "http.response.status_code": status})
            state.span.end(str(status) if status >= 500 else None)
        if access.isEnabledFor(logging.INFO) and not (route in QUIET_ROUTES and status in (200, 503)):
            log_access(state, route=route, method=method, status=status, seconds=seconds, overhead=overhead)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        """Raises `TooLarge`, `RequestTimeout`, and `BadRequest` for JSON that is nested too deeply."""
        limit, seconds = self.settings.max_body_bytes, self.settings.body_timeout_s
        too_large = TooLarge(f"The body is larger than {limit} bytes. Send a shorter conversation.")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise RequestTimeout(f"The body did not arrive within {seconds:g} s.") from None
        if "json" in headers.get("content-type", "") and too_deep(body):
            raise BadRequest(f"The body is nested more than {MAX_DEPTH} deep.", code="invalid_json")
        return bytes(body)


class _Answer:
    """The way back to the client: adds the headers, and notices when the first event of a stream leaves.
    `closes`: the connection is not to be used again."""

    __slots__ = ("_send", "_streams", "_telemetry", "arrived", "closes", "scope", "state", "status")

    def __init__(self, scope: Scope, send: Send, state: RequestState, telemetry: Telemetry) -> None:
        self.scope, self.state, self.status, self.closes = scope, state, 0, False
        self.arrived = time.perf_counter()
        self._send, self._telemetry, self._streams = send, telemetry, False

    async def send(self, message: Message) -> None:
        state = self.state
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [
                (b"x-request-id", state.request_id.encode()),
                (b"x-pit-overhead-ms", b"%.2f" % (1000 * state.overhead_s)),
                *state.headers,
            ]
            if self.closes:
                added.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", ()), *added]
            self._streams = EVENT_STREAM in message["headers"]
        elif self._streams and not message["body"].startswith(b":"):  # a comment is no event
            self._streams = False
            first = self._telemetry.first_event.labels(_route(self.scope))
            first.observe(time.perf_counter() - self.arrived)
        state.pause()
        try:
            await self._send(message)
        finally:
            state.resume()


class _ClientGone(Exception):
    """The client closed the connection while it sent the body."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then whatever comes: the disconnect."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _limited(
    headers: Headers, receive: Receive, limit: int, piece_s: float, state: RequestState
) -> Receive:
    """A `receive` for an application that reads a long body itself: it raises `TooLarge`, and
    `RequestTimeout` when the next piece does not come in time, or the whole."""
    too_large = TooLarge(f"The body is larger than {limit} bytes. Split the file.")
    declared = headers.get("content-length", "")
    received, ends, complete = 0, time.monotonic() + UPLOAD_TIMEOUT_S, False

    async def limited() -> Any:
        nonlocal received, complete
        if complete:
            return await receive()
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        state.pause()
        try:
            async with asyncio.timeout(min(piece_s, ends - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout("The body did not arrive in time.") from None
        finally:
            state.resume()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large
        complete = not message.get("more_body")
        return message

    return limited


def _method(scope: Scope) -> str:
    """The method, where it is one: a word that a client made up must not become a label."""
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """The route's template: a path that a client made up must not become a label."""
    route = scope.get("route")
    return getattr(route, "path", "unmatched")
