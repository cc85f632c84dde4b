"""Helpers for async generators: several side by side, one that begins before it is read, one under a deadline
that can be moved to now."""

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class _End(enum.Enum):
    DONE = enum.auto()


_DONE = _End.DONE


class Deadline:
    """When a run must end, in the event loop's time (None: never). `cut` makes it now, for whoever waits
    too."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.was_cut = False
        self._timeout: asyncio.Timeout | None = None

    def limit(self) -> asyncio.Timeout:
        """`async with deadline.limit()` raises `TimeoutError` when the deadline passes. One at a time."""
        self._timeout = asyncio.timeout_at(self.at)
        return self._timeout

    @property
    def passed(self) -> bool:
        return self.at is not None and asyncio.get_running_loop().time() >= self.at

    def cut(self) -> None:
        """Make the deadline now."""
        self.was_cut, self.at = True, asyncio.get_running_loop().time()
        if self._timeout:
            with contextlib.suppress(RuntimeError):  # it has ended: nobody waits
                self._timeout.reschedule(self.at)


async def within(stream: AsyncGenerator[T, None], deadline: Deadline) -> AsyncGenerator[T, None]:
    """The items of `stream` until `deadline`. Closing it closes `stream`.

    Raises `TimeoutError` when the deadline passes. Only the wait for an item is under the timeout: while
    the caller holds an item, no cancellation can reach it.
    """
    try:
        while True:
            async with deadline.limit():
                item = await anext(stream, _DONE)
            if item is _DONE:
                return
            yield item
    finally:
        await stream.aclose()


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all streams as they come. The first exception of any of them ends all. Closing it closes
    all."""
    if len(streams) == 1:
        try:
            async for item in streams[0]:
                yield item
        finally:
            await streams[0].aclose()
        return
    # One item a stream may wait: a slow reader slows the producers down instead of filling memory.
    queue: asyncio.Queue[T | Exception | _End] = asyncio.Queue(maxsize=len(streams))
    tasks = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    running = len(tasks)
    try:
        while running:
            received = await queue.get()
            if received is _DONE:
                running -= 1
            elif isinstance(received, Exception):
                raise received
            else:
                yield received
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Begun(Generic[T]):
    """A stream that begins now and is read later: until then its items are kept, however many."""

    def __init__(self, stream: AsyncGenerator[T, None]) -> None:
        self._queue: asyncio.Queue[T | Exception | _End] = asyncio.Queue()
        self._task = asyncio.create_task(_pump(stream, self._queue))

    async def items(self) -> AsyncGenerator[T, None]:
        """The items from the first on. Closing it closes the stream."""
        try:
            while (received := await self._queue.get()) is not _DONE:
                if isinstance(received, Exception):
                    raise received
                yield received
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the stream, read or not."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _pump(stream: AsyncGenerator[T, None], queue: "asyncio.Queue[T | Exception | _End]") -> None:
    try:
        async for item in stream:
            await queue.put(item)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(_DONE)
    finally:
        await stream.aclose()
