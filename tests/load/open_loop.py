"""Requests that leave at their times, whether earlier ones are answered or not: a server that falls behind is
seen to."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


async def open_loop(ask: Callable[[int], Coroutine[Any, Any, None]], rate: float, count: int) -> None:
    """Call `ask` with the numbers from 0, `rate` times a second. Raises what the first of them raises."""
    begun, tasks = time.perf_counter(), []
    for number in range(count):
        await asyncio.sleep(begun + number / rate - time.perf_counter())
        tasks.append(asyncio.create_task(ask(number)))
    await asyncio.gather(*tasks)
