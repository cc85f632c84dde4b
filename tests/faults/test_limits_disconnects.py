"""Row 2, what limits have to do with it: a client that goes away gives back its slot and its tokens."""

import asyncio
import time
from itertools import cycle

import pytest

from tests.app.conftest import running
from tests.app.redis_server import redis_server
from tests.app.test_disconnect import Client
from tests.app.test_limits_disconnect import (
    IMPROVE,
    PHASES,
    counted,
    engines_run,
    given_back,
    slow,
    start,
    until,
)
from tests.faults.figures import Figure, count, say

TIMES = count(100, 13)
QUEUED = "queued"


async def leave(phase: str, url: str | None) -> float:
    """Seconds from the going of a client in this phase until nothing of it is counted but what was used."""
    (path, body), make, reached = PHASES.get(phase, (IMPROVE, slow, engines_run))
    models = make()
    app = start(models, url)
    async with running(app) as http:
        if url:  # what the one before has used is not this one's
            await app.state.limits.limiter.shared.line.redis.flushall()
        client = Client(app, path, body)
        await until(lambda: reached(models))
        if phase == QUEUED:
            before = await counted(app)
            second = Client(app, path, body)
            await until(lambda: app.state.limits.queue.waiting)
            second.gone.set()
            async with asyncio.timeout(1):
                await second.task
            assert await counted(app) == before
        started = time.perf_counter()
        client.gone.set()
        async with asyncio.timeout(1):
            await client.task
        await given_back(app, http)
        return time.perf_counter() - started


@pytest.mark.parametrize("where", ["memory", "Redis"])
async def test_a_disconnect_gives_slot_and_tokens_back(where: str) -> None:
    """In every phase in turn: queued, before the first byte, in the middle, while it is scored, unary."""
    try:
        with redis_server() as redis:
            phases = cycle([*PHASES, QUEUED])
            url = redis.url if where == "Redis" else None
            times = [await leave(next(phases), url) for _ in range(TIMES)]
    except RuntimeError as error:
        pytest.skip(str(error))
    back = sum(seconds <= 1 for seconds in times)
    measured = f"{back} of {TIMES}, slowest {max(times):.2f} s"
    what = f"slot and tokens back, limits in {where}, {len(PHASES) + 1} phases"
    say(Figure(2, what, measured, f"{TIMES} of {TIMES} within 1 s", back == TIMES))
