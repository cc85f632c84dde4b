"""What storing costs a request: CPU and latency of `POST /v1/improve` with and without a database.

    python scripts/bench_store.py [--rounds 5] [--requests 200] [--rate 100] [--database URL]

Fake models (17 words, one iteration), no socket: the application is called directly, so that nothing else is
measured. Rounds alternate; medians of rounds. CPU is that of all threads.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from typing import Any

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models

BODY = {
    "messages": [{"role": "user", "content": "What is the price of the lamp ?"}],
    "reference": "no",
    "seed": 3,
    "max_iterations": 1,
    "max_tokens": 16,
}


async def call(app: FastAPI, stream: bool) -> float:
    """One request; seconds to its end."""
    body: bytes | None = json.dumps(BODY | {"stream": stream}).encode()
    started, last = time.perf_counter(), b""

    async def receive() -> dict[str, Any]:
        nonlocal body
        if body is not None:
            sent, body = body, None
            return {"type": "http.request", "body": sent, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal last
        last = message.get("body") or last

    scope = {
        "type": "http", "method": "POST", "path": "/v1/improve", "raw_path": b"/v1/improve", "root_path": "",
        "query_string": b"", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "scheme": "http", "server": ("s", 80), "client": ("c", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    await app(scope, receive, send)
    assert b'"stop_reason"' in last, last
    return time.perf_counter() - started


async def round_of(app: FastAPI, requests: int, rate: float, stream: bool) -> dict[str, float]:
    """`requests` at `rate` a second: milliseconds of CPU for each, and of latency."""
    cpu, started = time.process_time(), time.perf_counter()
    tasks = []
    for number in range(requests):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(call(app, stream)))
    seconds = sorted(await asyncio.gather(*tasks))
    return {
        "cpu_ms": 1000 * (time.process_time() - cpu) / requests,
        "p50_ms": 1000 * seconds[requests // 2],
        "p99_ms": 1000 * seconds[int(0.99 * (requests - 1))],
    }


async def measure(arguments: argparse.Namespace, directory: str) -> None:
    databases = {"none": "none", "stored": arguments.database or f"sqlite:///{directory}/pit.db"}
    apps = {}
    for name, url in databases.items():
        models = fake_models(improver=FakeEngine(script=lambda _: "word " * 16))
        apps[name] = create_app(Settings(database=url), factory_of(models))
    async with (
        apps["none"].router.lifespan_context(apps["none"]),
        apps["stored"].router.lifespan_context(apps["stored"]),
    ):
        for app in apps.values():
            await app.state.runtime.settled.wait()
            await round_of(app, 50, arguments.rate, False)
        for stream in (False, True):
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in apps}
            for _ in range(arguments.rounds):
                for name, app in apps.items():
                    rounds[name].append(await round_of(app, arguments.requests, arguments.rate, stream))
            for name, found in rounds.items():
                medians = {key: statistics.median(r[key] for r in found) for key in found[0]}
                shown = ", ".join(f"{key} {value:.2f}" for key, value in medians.items())
                print(f"{'stream' if stream else 'unary ':6} {name:6} {shown}")
    print(f"load average {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What storing costs a request.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--database", help="URL of an empty database; default: a new SQLite file")
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(parser.parse_args(), directory))


if __name__ == "__main__":
    main()
