"""A server inside the measuring process, so that its engines can be reached; its users are outside."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import uvicorn

from app.bench import Kind, Load
from app.engines.supervise import SupervisedEngine
from app.engines.vllm import VllmEngine
from app.main import create_app
from app.runtime import Served
from app.settings import Settings
from tests.load.processes import ROOT, LoadError


@asynccontextmanager
async def serving(served: Served, **settings: Any) -> AsyncIterator[tuple[str, Any]]:
    """Serve models that are up already, which stay up afterwards; gives the URL and the application."""

    async def close() -> None:
        """The caller closes them."""

    async def factory(_: Settings) -> Served:
        return Served(served.models, close, served.engine_version)

    app = create_app(Settings(**settings), factory)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(60):
            await app.state.runtime.settled.wait()
            while (await app.state.runtime.not_ready_because()) or not server.started:
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        server.should_exit = True
        await task


def engines_of(served: Served) -> list[VllmEngine]:
    """The vLLM engines of a server, each once, without what watches over them. Raises `LoadError`."""
    found: dict[int, VllmEngine] = {}
    for engine in (served.models.policy, served.models.improver):
        inner = engine.engine if isinstance(engine, SupervisedEngine) else engine
        if not isinstance(inner, VllmEngine):
            raise LoadError(f"this measurement needs vLLM in the process, and found {type(inner).__name__}")
        found[id(inner)] = inner
    return list(found.values())


async def drive(url: str, load: Load, kind: Kind, key: str | None = None) -> dict[str, Any]:
    """The figures of `app.bench` as a mapping, measured in a process of its own. Raises `LoadError` on any
    error."""
    command = [sys.executable, "-m", "tests.load.client", url, kind]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, "PIT_API_KEY": key or ""},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(json.dumps(asdict(load)).encode())
    if process.returncode:
        raise LoadError(f"the client of {kind} ended with status {process.returncode}")
    figures: dict[str, Any] = json.loads(output)
    if figures["errors"]:
        raise LoadError(f"{kind} at {url}: {figures['errors']}")
    return figures
