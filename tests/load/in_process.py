"""What a request costs this server itself: CPU time over fakes, ASGI in the process, no socket.

    python -m tests.load.in_process [--requests 2000] [--rounds 5]

Prints the median CPU time of a request of each kind, in microseconds. Two commits are compared by running it
in both, one after the other: middleware, metrics and logs are in it, HTTP parsing is not.
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import time
from typing import Any

from fastapi import FastAPI

from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models

MESSAGES = [{"role": "user", "content": "What is the price of the lamp ?"}]
KINDS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "live": ("GET", "/health/live", None),
    "chat": ("POST", "/v1/chat/completions", {"model": "policy", "messages": MESSAGES}),
    "chat, stream of 16": (
        "POST", "/v1/chat/completions", {"model": "policy", "messages": MESSAGES, "stream": True},
    ),
    "improve": ("POST", "/v1/improve", {"messages": MESSAGES, "reference": "no", "max_iterations": 1}),
}  # fmt: skip


async def ask(app: FastAPI, method: str, path: str, body: bytes) -> int:
    """One request, spoken in raw ASGI; the status."""
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "http_version": "1.1", "scheme": "http", "server": ("s", 80), "client": ("c", 1),
        "headers": [(b"content-type", b"application/json"), (b"host", b"s"), (b"user-agent", b"bench")],
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {},
    }  # fmt: skip
    given, status, forever = False, 0, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            await forever.wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


async def measure(requests: int, rounds: int, settings: dict[str, Any]) -> dict[str, float]:
    """Median microseconds of CPU a request over the rounds, which are interleaved."""
    engine = FakeEngine(script=lambda _: "word " * 16, context_length=4096)
    app = create_app(Settings(**settings), factory_of(fake_models(policy=engine, improver=engine)))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with app.router.lifespan_context(app):
        await app.state.runtime.settled.wait()
        for number in range(rounds + 1):
            for kind, (method, path, body) in KINDS.items():
                data = json.dumps(body | {"max_tokens": 16}).encode() if body else b""
                before = time.process_time()
                for _ in range(requests):
                    assert await ask(app, method, path, data) == 200
                engine.prompts.clear()
                engine.samplings.clear()
                if number:  # the first round warms up
                    found[kind].append(1e6 * (time.process_time() - before) / requests)
    return {kind: statistics.median(values) for kind, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", type=json.loads, default={}, help="the server's settings, as JSON")
    given = parser.parse_args()
    settings = {"database": "none"} | given.settings
    # The access log is written, to nowhere.
    configure_logging(Settings(**settings))
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(open(os.devnull, "w"))  # noqa: SIM115
    for kind, microseconds in asyncio.run(measure(given.requests, given.rounds, settings)).items():
        print(f"{kind:20} {microseconds:8.0f} us")
