"""Answers that notice when their client goes away: the generation behind them is cancelled at once."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.render import dumps, shown, sse
from app.errors import STATUS_CLIENT_CLOSED
from app.lifecycle import Lifecycle, stopping
from app.limits.limits import Work
from app.observe import current
from app.telemetry import Telemetry

log = logging.getLogger(__name__)
T = TypeVar("T")
Entry = AbstractAsyncContextManager[None]
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(
    request: Request,
    work: Work,
    answer: Callable[[], Coroutine[Any, Any, Any]],
    chunks: AsyncGenerator[bytes, None] | None = None,
) -> Any:
    """How every route answers that generates or scores: within the server's limits, with a stream of
    `chunks` where there are some, else with what `answer` gives. `work` is what it costs."""
    state = request.app.state
    entry = state.limits.entry(work)
    if chunks is not None:
        ping_s = state.runtime.settings.ping_interval_s
        return EventStream(chunks, ping_s=ping_s, telemetry=state.telemetry, entry=entry)
    return await _unless_disconnected(request, answer, state.telemetry, entry)


async def _unless_disconnected(
    request: Request, answer: Callable[[], Coroutine[Any, Any, T]], telemetry: Telemetry, entry: Entry
) -> T | Response:
    """The answer, given within `entry`, or an empty response (which nobody reads) when the client went away
    and the work was cancelled."""

    async def admitted() -> T:
        async with entry:
            return await answer()

    task = asyncio.create_task(admitted())
    watcher = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        telemetry.disconnects.labels(request.scope["route"].path).inc()
        return Response(status_code=STATUS_CLIENT_CLOSED)
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _last(error: Exception) -> bytes:
    """How a stream that has begun ends with an error; its code goes into the request's line in the log."""
    seen = shown(error)
    if state := current.get():
        state.error = seen.code
    return sse(dumps(seen.body())) + sse("[DONE]")


class EventStream(Response):
    """A stream of Server-Sent Events. Sends a comment after `ping_s` seconds of silence; cancels when the
    client goes.

    The status goes out with the first chunk or comment. An error before that is raised, and so has a status
    of its own; one after it is an event, and [DONE]. All of it is within `entry`; until that lets it in,
    there is no comment either. With `at_once` the status goes out by itself, where nothing is left to go
    wrong: the client of a silent stream knows that it is connected.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        ping_s: float,
        telemetry: Telemetry,
        entry: Entry | None = None,
        at_once: bool = False,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.chunks, self.ping_s, self.telemetry = chunks, ping_s, telemetry
        self.entry, self.at_once = entry or nullcontext(), at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        last, begun = time.monotonic(), False
        sending, admitted = asyncio.Lock(), asyncio.Event()

        async def write(chunk: bytes, more: bool = True) -> None:
            nonlocal last, begun
            async with sending:
                if not begun:
                    begun = True
                    await send(head)
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
                last = time.monotonic()

        async def pump() -> None:
            nonlocal last
            async with self.entry, aclosing(self.chunks) as chunks:
                last = time.monotonic()
                admitted.set()
                if self.at_once:
                    await write(b"")
                async for chunk in chunks:
                    await write(chunk)

        async def ping() -> None:
            await admitted.wait()
            while True:
                await asyncio.sleep(max(0.01, last + self.ping_s - time.monotonic()))
                if time.monotonic() - last >= self.ping_s:
                    await write(b": ping\n\n")

        producer = asyncio.create_task(pump())
        helpers = [asyncio.create_task(_disconnected(receive)), asyncio.create_task(ping())]
        try:
            await asyncio.wait({producer, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            if not producer.done():
                self.telemetry.disconnects.labels(scope["route"].path).inc()
                return
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            if error := producer.exception():
                if not begun or not isinstance(error, Exception):
                    raise error
                await write(_last(error))
            await write(b"", more=False)
        except asyncio.CancelledError:
            lifecycle: Lifecycle = scope["app"].state.runtime.lifecycle
            if not begun or not lifecycle.was_ended():
                raise
            # The server stops, and this stream took longer than it waits.
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
            await write(_last(stopping()))
            await write(b"", more=False)
        finally:
            for task in (producer, *helpers):
                task.cancel()
            await asyncio.gather(producer, *helpers, return_exceptions=True)
