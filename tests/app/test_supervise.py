"""An engine that hangs or dies: noticed, said, its requests ended, and replaced. Times are a hundredth of the
real ones; tests/faults does it to a real engine's process."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from app.engines.base import Delta, Engine, Prompt, Sampling
from app.engines.supervise import SupervisedEngine, Timing
from app.errors import CheckpointError, EngineFailed, Overloaded, ScoringUnavailable
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

TIMING = Timing(watchdog_s=0.2, probe_s=0.05, restart_hung_s=30, first_delay_s=0.05, tick_s=0.01)
WRITE = Sampling(max_tokens=20, seed=1)


@dataclass
class Process(FakeEngine):
    """An engine that stops answering while `stopped`, and fails when `dead`."""

    stopped: bool = False
    dead: bool = False

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        await self._wait()
        async with aclosing(super().generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                await self._wait()
                yield delta

    async def _wait(self) -> None:
        while self.stopped and not self.dead:
            await asyncio.sleep(0.002)
        await self.check_health()

    async def check_health(self) -> None:
        if self.dead or self.closed:
            raise EngineFailed("Dead.")


@dataclass
class Builder:
    """Builds the engines that follow, after so many attempts that fail."""

    failures: int = 0
    may_build: asyncio.Event | None = None
    times: list[float] = field(default_factory=list)
    built: list[Process] = field(default_factory=list)

    async def __call__(self) -> Engine:
        self.times.append(time.monotonic())
        if len(self.times) <= self.failures:
            raise CheckpointError("No memory.")
        if self.may_build:
            await self.may_build.wait()
        self.built.append(Process(delay_s=0.005))
        return self.built[-1]


@pytest.fixture
async def process() -> Process:
    return Process(delay_s=0.005, script=lambda _: "word " * 20)


@pytest.fixture
async def builder() -> Builder:
    return Builder()


@pytest.fixture
async def engine(process: Process, builder: Builder) -> AsyncGenerator[SupervisedEngine, None]:
    supervised = SupervisedEngine(process, builder, TIMING)
    yield supervised
    await supervised.close()


async def generate(engine: Engine) -> list[Delta]:
    prompt = await engine.prepare([{"role": "user", "content": "Hello"}])
    async with aclosing(engine.generate(prompt, WRITE)) as deltas:
        return [delta async for delta in deltas]


async def until(condition: Callable[[], bool], seconds: float = 2) -> float:
    """Seconds until it holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        await asyncio.sleep(0.002)
    return time.monotonic() - started


async def test_it_gives_what_the_engine_gives(engine: SupervisedEngine, process: Process) -> None:
    assert len(await generate(engine)) == 20
    assert await engine.logprobs([1], [2, 3]) == [-1.0, -1.0]
    await engine.check_health()
    assert engine.model_id == process.model_id


async def test_a_hang_ends_its_requests_and_a_token_ends_the_hang(
    engine: SupervisedEngine, process: Process, builder: Builder
) -> None:
    """SIGSTOP and SIGCONT, in small."""
    requests = [asyncio.create_task(generate(engine)) for _ in range(5)]
    await until(lambda: process.running == 5)
    process.stopped = True
    ended = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(error, EngineFailed) for error in ended)
    assert process.running == 0
    with pytest.raises(EngineFailed, match="no token"):
        await engine.check_health()
    with pytest.raises(Overloaded):
        await generate(engine)
    await asyncio.sleep(0.5)
    assert engine.problem
    process.stopped = False
    await until(lambda: engine.problem is None)
    assert len(await generate(engine)) == 20
    assert (builder.times, engine.restarts) == ([], 0)


async def test_a_hang_without_any_request_is_found_by_the_probe(
    engine: SupervisedEngine, process: Process
) -> None:
    process.stopped = True
    took = await until(lambda: engine.problem is not None)
    assert took >= TIMING.watchdog_s
    process.stopped = False
    await until(lambda: engine.problem is None)


async def test_the_probe_waits_for_idle_times(engine: SupervisedEngine, process: Process) -> None:
    for _ in range(4):
        await generate(engine)
    assert process.started == 4
    await until(lambda: process.started > 6)


async def test_a_slow_engine_and_a_slow_reader_are_no_hang(
    engine: SupervisedEngine, process: Process
) -> None:
    """One token in time is enough for all that wait; a reader that takes its time is not waited for."""
    process.delay_s = 0.1
    prompt = await engine.prepare([{"role": "user", "content": "Hello"}])
    async with aclosing(engine.generate(prompt, Sampling(max_tokens=5, seed=1))) as deltas:
        async for _ in deltas:
            await asyncio.sleep(0.25)
    assert engine.problem is None


async def test_an_idle_time_is_no_hang(process: Process, builder: Builder) -> None:
    """The watch begins with the request, where probes come seldom."""
    timing = Timing(watchdog_s=0.2, probe_s=60, tick_s=0.01)
    engine = SupervisedEngine(process, builder, timing)
    await asyncio.sleep(0.3)
    process.delay_s = 0.05
    assert len(await generate(engine)) == 20
    await engine.close()


async def test_a_dead_engine_is_replaced(
    engine: SupervisedEngine, process: Process, builder: Builder
) -> None:
    builder.may_build = asyncio.Event()  # a restart within the tick would be seen by nobody
    request = asyncio.create_task(generate(engine))
    await until(lambda: process.running == 1)
    process.dead = True
    with pytest.raises(EngineFailed):
        await request
    with pytest.raises(EngineFailed):
        await engine.check_health()
    builder.may_build.set()
    await until(lambda: engine.restarts == 1)
    assert process.closed
    assert engine.engine is builder.built[0]
    await engine.check_health()
    assert await generate(engine)


async def test_restarts_that_fail_are_tried_again_ever_more_slowly(
    engine: SupervisedEngine, process: Process, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    builder.failures = 3
    process.dead = True
    await until(lambda: engine.problem is not None and "No memory." in engine.problem)
    await until(lambda: engine.restarts == 1)
    builder.built[0].dead = True  # it dies at once again: the pause goes on growing
    await until(lambda: engine.restarts == 2)
    said = [float(pause) for pause in re.findall(r"next attempt in (\S+) s", caplog.text)]
    assert [round(pause / TIMING.first_delay_s) for pause in said] == [1, 2, 4]
    # At least: a busy machine wakes late.
    took = [later - earlier for earlier, later in pairwise(builder.times)]
    wanted = [*said, 8 * TIMING.first_delay_s]
    assert all(pause >= 0.99 * least for pause, least in zip(took, wanted, strict=True))


async def test_an_engine_that_hangs_for_good_is_replaced(process: Process, builder: Builder) -> None:
    timing = Timing(watchdog_s=0.1, probe_s=0.05, restart_hung_s=0.2, first_delay_s=0.05, tick_s=0.01)
    engine = SupervisedEngine(process, builder, timing)
    process.stopped = True
    await until(lambda: engine.restarts == 1)
    assert process.closed
    await engine.close()
    assert builder.built[0].closed


async def test_closing_while_it_restarts(process: Process) -> None:
    async def never() -> Engine:
        await asyncio.sleep(60)
        raise AssertionError

    engine = SupervisedEngine(process, never, TIMING)
    process.dead = True
    await until(lambda: engine.problem is not None)
    async with asyncio.timeout(1):
        await engine.close()


async def test_readiness_over_http(serve: Serve, engine: SupervisedEngine, process: Process) -> None:
    """A request to an engine that hangs is refused with Retry-After, before its stream begins."""
    models = fake_models()
    client = await serve(type(models)(engine, engine, models.scorer, models.calibration, "Improve."))
    assert (await client.get("/health/ready")).json() == {"status": "ok", "reasons": [], "degraded": []}
    process.stopped = True
    await until(lambda: engine.problem is not None)
    ready = await client.get("/health/ready")
    assert (ready.status_code, len(ready.json()["reasons"])) == (503, 2)
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    refused = await client.post("/v1/improve", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "retry-after" in refused.headers
    process.stopped = False
    await until(lambda: engine.problem is None)
    assert (await client.get("/health/ready")).status_code == 200


async def test_a_gap_reward_that_is_down_degrades_and_does_not_stop_the_server(serve: Serve) -> None:
    """best_effort says that nothing was scored; required is refused before anything is generated."""
    scorer = FakeScorer(down=ScoringUnavailable("It is busy."))
    improver = FakeEngine()
    client = await serve(fake_models(scorer=scorer, improver=improver))
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["gap reward: It is busy."])
    body = {"messages": [{"role": "user", "content": "Hello"}], "reference": "no", "scoring": "required"}
    refused = await client.post("/v1/improve", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "scoring_unavailable")
    assert improver.started == 0
    answer = (await client.post("/v1/improve", json=body | {"scoring": "best_effort"})).json()
    assert (answer["scoring"], len(answer["iterations"])) == ("skipped", 1)
    stream = (await client.post("/v1/improve", json=body | {"scoring": "best_effort", "stream": True})).text
    assert 'data: {"type":"scoring.skipped","index":0,"message":"It is busy."}' in stream
    assert scorer.calls == 0
