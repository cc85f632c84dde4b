"""What store, keys and limits add to an answer's latency, at 100 requests a second.

Two gateways before one mock upstream: one without any of them, one with all, asked by an open loop. Rounds
are interleaved; the first half second of each warms up.
"""

import asyncio
import json
import math
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from tests.load.figures import Bar, Result, spread
from tests.load.gateway import Contestant, start_gateway, upstream
from tests.load.open_loop import open_loop
from tests.load.processes import ROOT, LoadError

RATE, SECONDS, ROUNDS = 100, 8, 5
QUANTILES = {"p50 ms": 0.5, "p99 ms": 0.99}
BARS = {"p50 ms": 2.0, "p99 ms": 10.0}
BODY = {
    "messages": [{"role": "user", "content": "The lamp has price 24 euros. What about the price?"}],
    "reference": "It has price 24 euros. My cat sleeps all morning.",
    "max_iterations": 1,
}


async def arrivals(url: str, key: str | None) -> list[float]:
    """Latencies in milliseconds of `RATE` requests a second for `SECONDS`. Raises on any failed request."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    found: list[float] = []
    warm_up = RATE // 2
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def ask(number: int) -> None:
            started = time.perf_counter()
            async with http.post(f"{url}/v1/improve", json=BODY) as answer:
                body = await answer.json()
            if answer.status != 200 or body["scoring"] != "gap":
                raise LoadError(f"HTTP {answer.status}: {body.get('error')}")
            if number >= warm_up:
                found.append(1000 * (time.perf_counter() - started))

        await open_loop(ask, RATE, warm_up + RATE * SECONDS)
    return found


async def _round(one: Contestant) -> dict[str, float]:
    before = one.server.cpu_seconds()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.load.latency", one.server.url,
        cwd=ROOT, env={**os.environ, "PIT_API_KEY": one.key or ""}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode:
        raise LoadError(f"latency: the users of {one.server.name} ended with status {process.returncode}")
    ordered = sorted(json.loads(output))
    row = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in QUANTILES.items()}
    spent = one.server.cpu_seconds() - before
    return row | {"CPU ms": 1000 * spent / (RATE * SECONDS + RATE // 2)}


async def _rounds(contestants: list[Contestant]) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(ROUNDS + 1):
        for one in contestants:
            row = await _round(one)
            if number:  # the first round warms up
                found.setdefault(one.server.name, []).append(row)
    return found


def measure(output: Path) -> Result:
    """Start both, and compare them round by round."""
    result = Result("latency")
    with ExitStack() as stack, upstream(stack, output, "--length", "16", "--delay-ms", "10") as mock:
        full = start_gateway(stack, output, mock.url)
        bare = start_gateway(stack, output, mock.url, bare=True)
        found = asyncio.run(_rounds([full, bare]))
    for name, rows in found.items():
        result.rows[name] = {column: spread([row[column] for row in rows]) for column in rows[0]}
    for column, limit in BARS.items():
        pairs: list[Any] = list(zip(*(found[one.server.name] for one in (full, bare)), strict=True))
        added = spread([mine[column] - plain[column] for mine, plain in pairs])
        result.notes.append(f"added by store, keys and limits, {column}: {added}")
        result.bars.append(Bar(f"added {column}", added.median, limit))
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(arrivals(sys.argv[1], os.environ.get("PIT_API_KEY") or None))))
