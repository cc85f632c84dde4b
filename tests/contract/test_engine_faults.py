"""A real engine's process is stopped, continued and killed under a server: what clients and readiness see
(fault rows 4 and 5). In the full form with the times that users have."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
import uvicorn

from app.engines.supervise import SupervisedEngine
from app.main import create_app
from app.runtime import Served, start_models
from app.settings import Settings
from tests.faults.figures import FULL, Figure, count, say
from tests.load.processes import server as server_process
from tests.ports import free_port

pytestmark = pytest.mark.engine
TIMES: dict[str, Any] = {} if FULL else {"watchdog_s": 3.0, "probe_s": 1.0}
WATCHDOG_S, PROBE_S = (Settings(**TIMES).watchdog_s, Settings(**TIMES).probe_s)
REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the price of the lamp?"}],
    "reference": "No.",
    "max_tokens": 200,
    "temperature": 2.0,
    "candidates": 8,
    "max_iterations": 20,
    "patience": 20,
    "stream": True,
}


@pytest.fixture(scope="module")
async def server(served: Served, checkpoints: dict[str, Path]) -> AsyncGenerator[tuple[str, Served], None]:
    """A server with an engine of its own. `served` first: then what is imported is imported."""
    settings = Settings(policy=checkpoints["both"], gap_reward=checkpoints["gap"], **TIMES)
    mine = await start_models(settings)

    async def factory(_: Settings) -> Served:
        return mine

    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings, factory)
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    task = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
    await app.state.runtime.settled.wait()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", mine
    uvicorn_server.should_exit = True
    await task


@pytest.fixture
def supervised(server: tuple[str, Served]) -> SupervisedEngine:
    found = server[1].models.policy
    assert isinstance(found, SupervisedEngine)
    return found


@pytest.fixture
async def http(server: tuple[str, Served]) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=server[0], timeout=60) as client:
        yield client


def process_of(engine: SupervisedEngine) -> psutil.Process:
    """The process of its engine core."""
    manager = engine.engine._llm.engine_core.resources.engine_manager  # type: ignore[attr-defined]
    return psutil.Process(manager.processes[0].pid)


async def seconds_until(condition: Callable[[], Any], limit: float) -> float:
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < limit, f"not within {limit:g} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def stream(http: httpx.AsyncClient, begun: asyncio.Event) -> dict[str, Any]:
    """The last event of a run."""
    last: dict[str, Any] = {}
    async with http.stream("POST", "/v1/improve", json=REQUEST) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
                if last["type"] == "output.delta":
                    begun.set()
    return last


async def test_a_stopped_process_is_noticed_and_a_continued_one_works_again(
    http: httpx.AsyncClient, supervised: SupervisedEngine
) -> None:
    """The socket stays open and the process exists: only the tokens are missing."""

    async def status() -> int:
        return (await http.get("/health/ready")).status_code

    async def not_ready() -> bool:
        return await status() == 503

    async def ready() -> bool:
        return await status() == 200

    noticed: dict[bool, float] = {}
    for with_request in (True, False):
        begun = asyncio.Event()
        request = asyncio.create_task(stream(http, begun)) if with_request else None
        if request:
            await asyncio.wait_for(begun.wait(), 10)
        process = process_of(supervised)
        process.suspend()
        try:
            noticed[with_request] = await seconds_until(not_ready, WATCHDOG_S + PROBE_S + 3)
            assert noticed[with_request] >= WATCHDOG_S - 0.5
            if request:
                last = await asyncio.wait_for(request, 2)
                assert (last["type"], last["error"]["code"]) == ("run.failed", "engine_failed")
            refused = await http.post("/v1/improve", json=REQUEST)
            assert refused.status_code == 503
        finally:
            process.resume()
        await seconds_until(ready, 10)
        answer = await http.post("/v1/improve", json=REQUEST | {"stream": False, "max_iterations": 1})
        assert answer.status_code == 200
        assert process_of(supervised).pid == process.pid
    assert supervised.restarts == 0
    say(
        Figure(
            5,
            f"SIGSTOP of the engine, at watchdog_s {WATCHDOG_S:g} and probe_s {PROBE_S:g}",
            f"not ready after {noticed[True]:.1f} s with a request, {noticed[False]:.1f} s without any; the"
            " request fails with an error event, new ones are 503; ready again after SIGCONT",
            f"within {30 if FULL else WATCHDOG_S + PROBE_S + 1:g} s",
            max(noticed.values()) <= (30 if FULL else WATCHDOG_S + PROBE_S + 1),
        )
    )


async def test_a_killed_process_ends_its_streams_and_comes_back(
    http: httpx.AsyncClient, supervised: SupervisedEngine
) -> None:
    """kill -9 mid-stream: an error event within 2 s, not ready within 5, ready again without a restart of
    the server."""
    for number in range(1, count(3, 1) + 1):
        begun = [asyncio.Event() for _ in range(5)]
        streams = [asyncio.create_task(stream(http, event)) for event in begun]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 20)
        old = process_of(supervised).pid
        killed = time.monotonic()
        os.kill(old, signal.SIGKILL)
        for last in await asyncio.gather(*streams):
            assert (last["type"], last["error"]["type"]) == ("run.failed", "engine_error")
        ended_s = time.monotonic() - killed
        assert (await http.get("/health/ready")).status_code == 503
        unready_s = time.monotonic() - killed

        async def restarted(times: int = number) -> bool:
            return supervised.restarts == times

        await seconds_until(restarted, 150)
        back_s = time.monotonic() - killed
        assert (await http.get("/health/ready")).status_code == 200
        answer = await http.post("/v1/improve", json=REQUEST | {"stream": False, "max_iterations": 1})
        assert answer.status_code == 200
        assert process_of(supervised).pid != old
        assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE
        say(
            Figure(
                4,
                f"kill -9 of the engine under 5 streams{f', time {number}' if FULL else ''}",
                f"error events after {ended_s:.2f} s, not ready after {unready_s:.2f} s, ready again after"
                f" {back_s:.0f} s",
                "an error event within 2 s, not ready within 5 s, comes back by itself",
                ended_s < 2 and unready_s < 5,
            )
        )


async def test_no_engine_outlives_a_server_that_is_killed(
    served: Served, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """kill -9 of the server takes its engine with it: one that it spawned, and, in the full form, one that it
    forked and one that was started again."""
    command = [sys.executable, "-m", "app.cli", "serve", "--policy", str(checkpoints["both"])]
    command += ["--database", f"sqlite:///{tmp_path}/pit.db", "--no-verify", "--port"]
    gone: dict[str, float] = {}
    for how in ("spawned", "forked", "started again") if FULL else ("spawned",):
        port = free_port()
        start = [*command, str(port), "--engine-start", "spawn" if how == "spawned" else "fork"]
        with server_process(
            "pit", start, port=port, log=tmp_path / "pit.log", ready="/health/ready"
        ) as running:
            (engine,) = engines_of(running.process)
            if how == "started again":
                killed = engine
                killed.kill()
                async with asyncio.timeout(150):
                    # The dead engine is gone before the server says that it is not ready.
                    while engines_of(running.process) in ([], [killed]) or not await is_ready(running.url):
                        await asyncio.sleep(0.2)
                (engine,) = engines_of(running.process)
            assert os.getpgid(engine.pid) != os.getpgid(running.process.pid), "Ctrl-C would reach it"
            running.process.kill()
            started = time.monotonic()
            while engine.is_running() and time.monotonic() - started < 10:
                await asyncio.sleep(0.01)
            gone[how] = time.monotonic() - started
    say(
        Figure(
            4,
            "kill -9 of the server: its engine",
            ", ".join(f"{how} engine gone after {seconds:.2f} s" for how, seconds in gone.items()),
            "no engine process is left after 5 s",
            max(gone.values()) < 5,
        )
    )


def engines_of(server: psutil.Process) -> list[psutil.Process]:
    """Its engine processes that work, not those it has not reaped."""
    children = server.children(recursive=True)
    return [c for c in children if "Engine" in c.name() and c.status() != psutil.STATUS_ZOMBIE]


async def is_ready(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{url}/health/ready")).status_code == 200
