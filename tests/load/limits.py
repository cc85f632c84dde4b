"""What limits cost: CPU time of an admission, and the latency that they add to a request at 100 a second.

The second is measured from outside, on three servers before one mock upstream, whose turns are interleaved:
no limits, limits in memory, limits in Redis. Requests leave at fixed times, answered or not.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import aiohttp

from app.limits.limits import Limits
from app.security import SCOPES, Identity, KeyLimits
from app.settings import Settings
from app.telemetry import Telemetry
from tests.app.redis_server import redis_server
from tests.load.figures import Bar, Result
from tests.load.gateway import IMPROVE_TURN, upstream
from tests.load.open_loop import open_loop
from tests.load.processes import LoadError, Server, server
from tests.ports import free_port

ADMISSIONS = 5000
RATE, SECONDS, ROUNDS = 100, 5, 4
WIDE = 10**9
LIMITS = {"requests_per_minute": WIDE, "tokens_per_minute": WIDE, "max_concurrency": 1000}
WHO = Identity("key", SCOPES, KeyLimits(WIDE, WIDE, 1000))
BODY = {"model": "policy", "messages": [{"role": "user", "content": "What about the price?"}]}


class Work:
    """Costs tokens and no time."""

    lower = ""
    tokens_used = 20

    async def worst_case(self, *, exact: bool) -> int:
        return 120


async def admissions(url: str | None) -> tuple[float, float]:
    """Microseconds of CPU time and of time for one admission and its end, one after the other: all six
    limits, of a key and in total."""
    limits = Limits(Settings(limits_url=url, **LIMITS), Telemetry())  # type: ignore[arg-type]
    limits.start()
    found = []
    for number in (100, ADMISSIONS):  # the first warms up
        cpu, started = time.process_time(), time.perf_counter()
        for _ in range(number):
            async with limits.entry(Work(), WHO):
                pass
        found = [time.process_time() - cpu, time.perf_counter() - started]
    await limits.stop()
    return 1e6 * found[0] / ADMISSIONS, 1e6 * found[1] / ADMISSIONS


async def latencies(url: str) -> list[float]:
    """Milliseconds of each request of an open loop."""
    found: list[float] = []

    async def one(number: int) -> None:
        started = time.perf_counter()
        async with session.post(f"{url}/v1/chat/completions", json=BODY) as answer:
            await answer.read()
            if answer.status != 200:
                raise LoadError(f"HTTP {answer.status} from {url}")
        found.append(1000 * (time.perf_counter() - started))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await open_loop(one, RATE, RATE * SECONDS)
    return found


def start(stack: ExitStack, output: Path, name: str, mock: str, settings: dict[str, object]) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--improve-turn", IMPROVE_TURN]
    for role in ("policy", "improver", "gap-reward"):
        command += [f"--{role}-url", mock]
    env = {f"PIT_{setting.upper()}": str(value) for setting, value in settings.items()}
    log = output / f"limits-{name}.log"
    started = server(name, command, port=port, log=log, ready="/health/ready", env=env)
    return stack.enter_context(started)


def quantile(values: Sequence[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(1000 * share) - 1]


def measure(output: Path, rounds: int = ROUNDS) -> Result:
    """Raises `LoadError` where a request fails, or Redis is not installed."""
    result = Result("limits")
    with ExitStack() as stack:
        try:
            redis = stack.enter_context(redis_server())
        except RuntimeError as error:
            raise LoadError(str(error)) from None
        for name, url in (("memory", None), ("Redis", redis.url)):
            cpu, wall = asyncio.run(admissions(url))
            result.rows[f"admission, {name}"] = {"CPU µs": cpu, "µs": wall}
        mock = stack.enter_context(upstream(stack, output, "--length", "16", "--delay-ms", "10"))
        variants: dict[str, dict[str, object]] = {
            "none": {"max_concurrency": 10**6},
            "memory": {**LIMITS},
            "Redis": {**LIMITS, "limits_url": redis.url},
        }
        servers = {name: start(stack, output, name, mock.url, given) for name, given in variants.items()}
        found: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            for name, one in servers.items():
                times = asyncio.run(latencies(one.url))
                if number:  # the first round warms up
                    found[name] += times
    for name, times in found.items():
        cells = {f"p{share:g} ms": quantile(times, share / 100) for share in (50, 99)}
        result.rows[f"request, {name}"] = cells
    for share, most in ((50, 2.0), (99, 10.0)):
        added = quantile(found["Redis"], share / 100) - quantile(found["none"], share / 100)
        result.bars.append(Bar(f"added by limits in Redis at {RATE} requests/s, p{share}, ms", added, most))
    return result
