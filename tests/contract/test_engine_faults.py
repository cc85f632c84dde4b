"""A real engine's process is stopped, continued and killed under a server: what clients and readiness see."""

import asyncio
import json
import os
import signal
import socket
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

pytestmark = pytest.mark.engine
WATCHDOG_S = 3.0
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
    settings = Settings(
        policy=checkpoints["both"], gap_reward=checkpoints["gap"], watchdog_s=WATCHDOG_S, probe_s=1
    )
    mine = await start_models(settings)

    async def factory(_: Settings) -> Served:
        return mine

    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(create_app(settings, factory), log_level="error"))
    task = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
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

    for with_request in (True, False):
        begun = asyncio.Event()
        request = asyncio.create_task(stream(http, begun)) if with_request else None
        if request:
            await asyncio.wait_for(begun.wait(), 10)
        process = process_of(supervised)
        process.suspend()
        try:
            assert await seconds_until(not_ready, WATCHDOG_S + 3) >= WATCHDOG_S - 0.5
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


async def test_a_killed_process_ends_its_streams_and_comes_back(
    http: httpx.AsyncClient, supervised: SupervisedEngine
) -> None:
    """kill -9 mid-stream: an error event within 2 s, not ready within 5, ready again without a restart of
    the server."""
    begun = [asyncio.Event() for _ in range(5)]
    streams = [asyncio.create_task(stream(http, event)) for event in begun]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 20)
    old = process_of(supervised).pid
    killed = time.monotonic()
    os.kill(old, signal.SIGKILL)
    for last in await asyncio.gather(*streams):
        assert (last["type"], last["error"]["type"]) == ("run.failed", "engine_error")
    assert time.monotonic() - killed < 2
    assert (await http.get("/health/ready")).status_code == 503
    assert time.monotonic() - killed < 5

    async def restarted() -> bool:
        return supervised.restarts == 1

    await seconds_until(restarted, 150)
    assert (await http.get("/health/ready")).status_code == 200
    answer = await http.post("/v1/improve", json=REQUEST | {"stream": False, "max_iterations": 1})
    assert answer.status_code == 200
    assert process_of(supervised).pid != old
    assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE
    print(f"back after {time.monotonic() - killed:.1f} s")
