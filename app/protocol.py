"""HTTP/1.1 as uvicorn speaks it, with limits: of a head's size and time, of connections, of readers that
stand still.

uvicorn's protocol takes a head of any size over any time, and waits for ever for a client that reads nothing.
What is refused here has the same form as every other error.
"""

import asyncio
import contextlib
import json
import uuid
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import AppError, BadRequest, HeadersTooLarge, Overloaded, RequestTimeout
from app.lifecycle import OPERATIONS
from app.settings import Settings

MAX_HEADERS = 100
LINGER_S = 3.0
"""How long what a client still sends is read and thrown away once it is refused. Closed at once, its system
would drop the answer that it has not read."""
SPARE_CONNECTIONS = 64
"""Connections beyond the most, for probes and for being told so; those beyond these are closed unheard."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every connection. Times in seconds."""

    connections: int
    head_bytes: int
    head_s: float
    write_s: float

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(
            settings.max_connections,
            settings.max_header_bytes,
            settings.header_timeout_s,
            settings.write_timeout_s,
        )


class Protocol(HttpToolsProtocol):
    """One connection. Give uvicorn `partial(Protocol, limits)`."""

    def __init__(
        self,
        limits: Limits,
        config: Config,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._reading_head = False
        self._fed = self._counted = self._headers = 0
        """Of the head that is being read: bytes that came, bytes and headers that the parser has seen."""
        self._problem: AppError | None = None
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections + SPARE_CONNECTIONS:
            transport.abort()
            return
        self._wait(self._limits.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    # ------------------------------------------------------------------------------------------- reading

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        idle = not self._answering()
        begun = self._reading_head or idle
        super().data_received(data)
        if self._reading_head and begun:  # the parser holds what came of a header, however much that is
            self._fed += len(data)
            if self._fed > self._limits.head_bytes:
                self._refuse(self._too_large())
        if not self._answering() and self._timer is None and self.timeout_keep_alive_task is None:
            # A head, or the rest of a body that was answered before its end: neither may take for ever.
            self._wait(self._limits.head_s, self._late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_head = True
        self._fed = self._counted = self._headers = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._headers += 1
        self._count(len(name) + len(value))

    def _count(self, more: int) -> None:
        """An error in here ends the parsing."""
        self._counted += more
        if self._counted > self._limits.head_bytes or self._headers > MAX_HEADERS:
            self._problem = self._too_large()
            raise ValueError

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def _late(self) -> None:
        limit = self._limits.head_s
        if self._reading_head:
            self._refuse(RequestTimeout(f"The head of the request did not arrive within {limit:g} s."))
        else:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """A request that asks for another protocol is answered in this one."""

    def _too_large(self) -> AppError:
        limit = self._limits.head_bytes
        return HeadersTooLarge(
            f"The address and the headers have more than {limit} bytes, or are more than {MAX_HEADERS}."
        )

    # ---------------------------------------------------------------------------------------- refusing

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take."""
        self._refuse(self._problem or BadRequest("This is not an HTTP/1.1 request.", code="invalid_http"))

    def _refuse(self, error: AppError) -> None:
        """Answer without the application, and close once the client has had the time to read it."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._answering():
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()  # an answer is under way, and what is refused is not its request
                return
            self.cycle.disconnected = True  # the application waits for a body that does not come
            self.cycle.message_event.set()
        body = json.dumps(error.body()).encode()
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: req_{uuid.uuid4().hex}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "\r\n"]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_S, self.transport.close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        path = cycle.scope["path"]
        if len(self.connections) > self._limits.connections and not path.startswith(OPERATIONS):
            app = partial(_busy, self._limits.connections)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()

    # ------------------------------------------------------------------------------------------ writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()
        if not self._answering():
            self._watch_reader()

    def _watch_reader(self) -> None:
        """A slow reader slows its own answer; one that stands still with some of it unread loses it. (Not
        the kernel's TCP_USER_TIMEOUT: it takes who reads in drops for who does not.)"""
        if self._stalled is None and (left := self.transport.get_write_buffer_size()):
            self._stalled = self.loop.call_later(self._limits.write_s, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        self._stalled = None
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # ------------------------------------------------------------------------------------------ helpers

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait(self, seconds: float, then: Any) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _busy(connections: int, scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application for those who are too many. It reads what they send: an answer before that could be
    lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
    error = Overloaded(
        f"The server has its {connections} connections. Try again in some seconds.",
        code="too_many_connections",
    )
    body = json.dumps(error.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": f"req_{uuid.uuid4().hex}",
        "connection": "close",
        **error.headers(),
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
