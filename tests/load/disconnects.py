"""Clients that leave, in every phase of a run, over real sockets and a real engine: how soon is it free?

A phase is reached when the server's own objects say so, not by a guess at the time. Then the socket is
closed, and the clock runs until nothing of the request is left: no request in flight in the server, none in
vLLM's front end but the others', and, where nobody else generates, an engine process that uses no more CPU.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from app.engines.base import Comparison, Scorer, Scores
from app.runtime import Served, start_models
from app.settings import Settings
from tests.load.figures import Bar, Result, spread
from tests.load.inside import engines_of, serving
from tests.load.processes import LoadError
from tests.tiny import make_tiny_checkpoint

LIMIT_S, SLOTS = 1.0, 4
"""How soon the engine must be free; sequences that the engine decodes at a time."""
LONG = 3000
"""Tokens that a generation may take: far more than it is left time for."""
MESSAGES = [{"role": "user", "content": "What is the price of the lamp?"}]
CHAT = {"model": "policy", "messages": MESSAGES, "max_tokens": LONG, "temperature": 1.5}
IMPROVE = {"messages": MESSAGES, "reference": "No.", "max_tokens": LONG, "temperature": 1.5}
SHORT = {**IMPROVE, "max_tokens": 4, "candidates": 3}
"""Three: one alone may be empty, and an empty one is not scored."""


@dataclass
class SlowScorer:
    """The real gap reward behind a wait, so that clients can leave while it is asked."""

    scorer: Scorer
    wait_s: float = 0.0
    asked: int = 0

    def __post_init__(self) -> None:
        self.context_length, self.model_id = self.scorer.context_length, self.scorer.model_id

    async def encode(self, comparison: Comparison) -> list[int]:
        return await self.scorer.encode(comparison)

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        self.asked += 1
        await asyncio.sleep(self.wait_s)
        return await self.scorer.score(comparisons)

    async def check_health(self) -> None:
        await self.scorer.check_health()

    async def close(self) -> None:
        await self.scorer.close()


@dataclass
class Place:
    """A server under test, and what can be seen of it from within."""

    url: str
    app: Any
    llm: Any
    scorer: SlowScorer
    process: psutil.Process

    def in_flight(self) -> float:
        value: float = self.app.state.telemetry.in_flight._value.get()
        return value

    def unfinished(self) -> int:
        number: int = self.llm.get_num_unfinished_requests()
        return number

    def engine_cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


class Connection:
    """One request on one socket."""

    left = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def post(cls, url: str, path: str, body: dict[str, Any]) -> "Connection":
        host, port = url.removeprefix("http://").split(":")
        connection = cls(*await asyncio.open_connection(host, int(port)))
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        connection.writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        await connection.writer.drain()
        return connection

    def leave(self) -> None:
        """Every other client says goodbye (FIN), the rest are torn away (RST)."""
        Connection.left += 1
        if Connection.left % 2:
            self.writer.close()
        else:
            self.writer.transport.abort()


async def until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> float:
    """Seconds until the condition holds. Raises `LoadError`."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > limit_s:
            raise LoadError(f"disconnects: {what} did not happen within {limit_s:g} s")
        await asyncio.sleep(0.001)
    return time.perf_counter() - started


async def freed(place: Place, others: int) -> float:
    """Seconds until only `others` are left, in the server and in the engine."""
    seconds = await until(
        lambda: place.in_flight() <= others and place.unfinished() <= others, "the end of a left request"
    )
    if others:
        return seconds
    started = time.perf_counter()
    while True:  # the engine process itself: idle is less than a tenth of a core
        before = place.engine_cpu()
        await asyncio.sleep(0.1)
        if place.engine_cpu() - before <= 0.01:
            return seconds + max(0.0, time.perf_counter() - started - 0.1)
        if time.perf_counter() - started > 20:
            raise LoadError("disconnects: the engine goes on computing for nobody")


async def queued(place: Place) -> float:
    """The engine is full of others; the request waits in its queue."""
    others = [await Connection.post(place.url, "/v1/chat/completions", CHAT) for _ in range(SLOTS)]
    await until(lambda: place.unfinished() == SLOTS, "a full engine")
    waiting = await Connection.post(place.url, "/v1/chat/completions", CHAT | {"stream": True})
    await until(lambda: place.unfinished() == SLOTS + 1, "a queued request")
    waiting.leave()
    seconds = await freed(place, SLOTS)
    for other in others:
        other.leave()
    await freed(place, 0)
    return seconds


async def before_the_first_byte(place: Place) -> float:
    connection = await Connection.post(place.url, "/v1/improve", IMPROVE | {"stream": True})
    await until(lambda: place.unfinished() == 1, "a generation")
    connection.leave()
    return await freed(place, 0)


async def mid_stream(place: Place) -> float:
    connection = await Connection.post(place.url, "/v1/chat/completions", CHAT | {"stream": True})
    for _ in range(12):
        await asyncio.wait_for(connection.reader.readline(), 20)
    connection.leave()
    return await freed(place, 0)


async def during_scoring(place: Place) -> float:
    place.scorer.wait_s, asked = 30.0, place.scorer.asked
    try:
        connection = await Connection.post(place.url, "/v1/improve", SHORT | {"stream": True})
        await until(lambda: place.scorer.asked > asked, "scoring")
        connection.leave()
        return await freed(place, 0)
    finally:
        place.scorer.wait_s = 0.0


async def unary(place: Place) -> float:
    connection = await Connection.post(place.url, "/v1/improve", IMPROVE | {"candidates": 3})
    await until(lambda: place.unfinished() == 3, "three generations")
    await asyncio.sleep(0.05)
    connection.leave()
    return await freed(place, 0)


PHASES = (queued, before_the_first_byte, mid_stream, during_scoring, unary)


@asynccontextmanager
async def the_place(directory: Path) -> AsyncIterator[Place]:
    """A random checkpoint whose generations last: few end tokens, and a long context."""
    both = make_tiny_checkpoint(directory / "both", "policy+improver", seed=0, context_length=4096)
    gap = make_tiny_checkpoint(directory / "gap", "gap_reward", seed=2)
    served = await start_models(Settings(policy=both, gap_reward=gap, max_num_seqs=SLOTS))
    try:
        (engine,), scorer = engines_of(served), served.models.scorer
        assert scorer is not None
        slow = SlowScorer(scorer)
        models = replace(served.models, scorer=slow)
        async with serving(Served(models, served.close, served.engine_version)) as (url, app):
            manager = engine._llm.engine_core.resources.engine_manager
            process = psutil.Process(manager.processes[0].pid)
            yield Place(url, app, engine._llm, slow, process)
    finally:
        await served.close()


async def measure(directory: Path, times: int = 20) -> Result:
    """Every phase `times` times, in turn."""
    result = Result("disconnects")
    found: dict[str, list[float]] = {phase.__name__.replace("_", " "): [] for phase in PHASES}
    async with the_place(directory) as place:
        for _ in range(times):
            for phase in PHASES:
                found[phase.__name__.replace("_", " ")].append(await phase(place))
    in_time = total = 0
    for name, seconds in found.items():
        result.rows[name] = {"seconds": spread(seconds), "slowest": max(seconds), "times": len(seconds)}
        in_time += sum(one <= LIMIT_S for one in seconds)
        total += len(seconds)
    result.bars.append(Bar("left requests gone within 1 s, of 100", 100 * in_time / total, 100, True))
    return result
