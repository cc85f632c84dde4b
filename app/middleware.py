"""One pure ASGI middleware around everything: request id, body limit, metrics, and the last resort for
exceptions."""

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import INTERNAL_ERROR_MESSAGE, AppError, BadRequest, TooLarge
from app.telemetry import Telemetry, log_failure

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
BODY_TIMEOUT_S = 30.0


def error_response(error: AppError) -> JSONResponse:
    """An error as an HTTP response."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


class RequestContext:
    """See the module. It reads the whole body before the application does: a body over the limit costs no
    more."""

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry, max_body_bytes: int) -> None:
        self.app, self.telemetry, self.max_body_bytes = app, telemetry, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        started = time.perf_counter()
        self.telemetry.in_flight.inc()
        try:
            body = await self._read_body(headers, receive)
            await self.app(scope, _replay(body, receive), send_with_id)
        except AppError as error:
            await error_response(error)(scope, receive, send_with_id)
        except _ClientGone:
            self.telemetry.disconnects.labels(_route(scope)).inc()
        except Exception as error:
            log_failure(f"request {request_id}", error)
            if not status:
                await error_response(AppError(INTERNAL_ERROR_MESSAGE))(scope, receive, send_with_id)
        finally:
            self.telemetry.in_flight.dec()
            route = _route(scope)
            self.telemetry.requests.labels(route, scope["method"], str(status or 499)).inc()
            self.telemetry.seconds.labels(route).observe(time.perf_counter() - started)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        """Raises `TooLarge`, or `BadRequest` for a body that does not arrive in time."""
        too_large = TooLarge(
            f"The body is larger than {self.max_body_bytes} bytes. Send a shorter conversation."
        )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    body += message.get("body", b"")
                    if len(body) > self.max_body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise BadRequest(
                f"The body did not arrive within {BODY_TIMEOUT_S:g} s.", code="body_timeout"
            ) from None


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


def _route(scope: Scope) -> str:
    """The route's template: a path that a client made up must not become a label."""
    route = scope.get("route")
    return getattr(route, "path", "unmatched")
