"""Two helpers for async generators: several side by side, and one under a deadline."""

import asyncio
import enum
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


class _End(enum.Enum):
    DONE = enum.auto()


_DONE = _End.DONE


async def within(stream: AsyncGenerator[T, None], deadline: float | None) -> AsyncGenerator[T, None]:
    """The items of `stream` until `deadline` (in the event loop's time). Closing it closes `stream`.

    Raises `TimeoutError` when the deadline passes. Only the wait for an item is under the timeout: while
    the caller holds an item, no cancellation can reach it.
    """
    try:
        while True:
            async with asyncio.timeout_at(deadline):
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
