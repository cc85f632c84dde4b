"""Row 13: limits under 200 parallel clients on two replicas that count in one Redis."""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.app.redis_server import RedisServer, redis_server
from tests.app.test_telemetry import value
from tests.faults.figures import Figure, count, say
from tests.load.processes import Server, server
from tests.ports import free_port

CLIENTS = 200
SECONDS = count(75, 3)
"""The full form goes over the end of the first minute; the short one goes on until the limits bind."""
TOTAL = {"requests_per_minute": 1200, "tokens_per_minute": 30_000, "max_concurrency": 30}
KEYS: dict[str, dict[str, int]] = {
    "requests": {"requests_per_minute": 60},
    "tokens": {"tokens_per_minute": 5_000},
    "slots": {"concurrency": 5},
    "all": {"requests_per_minute": 300, "tokens_per_minute": 12_000, "concurrency": 10},
}
BINDING = (
    "total tokens_per_minute",
    "total max_concurrency",
    "requests requests_per_minute",
    "tokens tokens_per_minute",
    "slots concurrency",
)
"""Limits that so many clients must run into: a server that lets nobody in oversteps none."""
MESSAGES = [{"role": "user", "content": "What is the price ?"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "policy", "messages": MESSAGES, "max_tokens": 40}),
    ("/v1/improve", {"messages": MESSAGES, "reference": "no", "candidates": 2, "max_iterations": 2}),
    ("/v1/improve", {"messages": MESSAGES, "stream": True}),
]


@dataclass(frozen=True)
class Line:
    """A request that was let in: whose, its tokens, between which times it was admitted, and when it left."""

    key: str
    tokens: int
    tried: float
    admitted: float
    left: float


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    try:
        with redis_server() as started:
            yield started
    except RuntimeError as error:
        pytest.skip(str(error))


def replicas(stack: ExitStack, folder: Path, redis: RedisServer, **settings: object) -> list[Server]:
    """Two servers, processes of their own."""
    environment = {f"PIT_{name.upper()}": str(given) for name, given in settings.items()}
    environment |= {"PIT_LIMITS_URL": redis.url, "PIT_DATABASE": "none", "REPLICA_KEYS": json.dumps(KEYS)}
    starts = []
    for number in range(2):
        port, log = free_port(), folder / f"replica{number}"
        command = [sys.executable, "-m", "tests.faults.replica", str(port), f"{log}.jsonl"]
        starts.append(
            server(
                f"replica {number}",
                command,
                port=port,
                log=Path(f"{log}.log"),
                ready="/health/ready",
                env=environment,
            )
        )
    with ThreadPoolExecutor() as pool:
        return list(pool.map(stack.enter_context, starts))


def lines(folder: Path) -> list[Line]:
    found = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [Line(*json.loads(line)) for line in found]


async def client(number: int, urls: list[str], until: float, statuses: Counter[int]) -> None:
    """Asks one replica, then the other, as fast as it is answered; one in ten requests it leaves early."""
    key, dice = list(KEYS)[number % len(KEYS)], random.Random(number)
    async with aiohttp.ClientSession(headers={"x-test-key": key}) as session:
        while time.monotonic() < until:
            path, body = dice.choice(BODIES)
            patience = dice.uniform(0.005, 0.1) if dice.random() < 0.1 else 60
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    async with session.post(dice.choice(urls) + path, json=body) as answer:
                        await answer.read()
                        statuses[answer.status] += 1
                    if answer.status in (429, 503):
                        assert int(answer.headers["retry-after"]) >= 1
                        await asyncio.sleep(dice.uniform(0.05, 0.3))


async def rush(urls: list[str]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    until = time.monotonic() + SECONDS
    await asyncio.gather(*[client(number, urls, until, statuses) for number in range(CLIENTS)])
    return statuses


async def counts(urls: list[str]) -> Counter[str]:
    """Tokens charged, refunded and used, by the metrics of both, when nothing runs any more; and how many of
    them count alone."""
    found: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        for url in urls:
            while True:
                async with session.get(f"{url}/metrics") as answer:
                    text = await answer.text()
                if not value(text, "pit_admitted_requests"):
                    break
                await asyncio.sleep(0.05)
            for kind in ("charged", "refunded"):
                found[kind] += int(value(text, "pit_limit_tokens_total", kind=kind))
            found["degraded"] += int(value(text, "pit_limits_degraded"))
            for phase in ("chat", "draft", "improve", "score"):
                for kind in ("prompt", "completion"):
                    found["used"] += int(value(text, "pit_tokens_total", phase=phase, kind=kind))
    return found


def most_in_a_minute(found: list[Line], amount: Callable[[Line], int]) -> int:
    """The largest sum of what was certainly admitted within 60 seconds."""
    return max(
        sum(amount(line) for line in found if line.tried >= first.tried and line.admitted <= first.tried + 60)
        for first in found
    )


def most_at_a_time(found: list[Line]) -> int:
    changes = sorted([(line.admitted, 1) for line in found] + [(line.left, -1) for line in found])
    return max(accumulate(change for _, change in changes))


def shares(found: list[Line]) -> dict[str, float]:
    """How much of every limit was used at most, 1.0 being all of it."""
    result = {}
    for name, limits in {"total": TOTAL, **KEYS}.items():
        own = [line for line in found if name in ("total", line.key)]
        most = {
            "requests_per_minute": most_in_a_minute(own, lambda line: 1),
            "tokens_per_minute": most_in_a_minute(own, lambda line: line.tokens),
            "concurrency": most_at_a_time(own),
        }
        for limit, given in limits.items():
            result[f"{name} {limit}"] = most[limit.removeprefix("max_")] / given
    return result


async def test_two_hundred_clients_on_two_replicas(redis: RedisServer, tmp_path: Path) -> None:
    """No limit is overstepped, and all of them are reached; every token that was charged and not used comes
    back, of clients that left in the middle too."""
    with ExitStack() as stack:
        urls = [one.url for one in replicas(stack, tmp_path, redis, **TOTAL)]
        statuses, used, started = Counter[int](), dict.fromkeys(BINDING, 0.0), time.monotonic()
        while min(used[name] for name in BINDING) <= 0.5 and time.monotonic() < started + 60:
            statuses += await rush(urls)
            found = await counts(urls)
            noted = lines(tmp_path)
            used = shares(noted)
    assert set(statuses) <= {200, 429, 503}, statuses
    print(dict(statuses), {name: round(share, 3) for name, share in used.items()})
    over = max(0.0, *[share - 1 for share in used.values()])
    what = f"{CLIENTS} clients, {SECONDS} s, two replicas, {len(used)} limits of four keys and in total"
    say(Figure(13, f"overshoot, {what}", f"{over:.2%}", "at most 1%", over <= 0.01))
    assert min(used[name] for name in BINDING) > 0.5
    assert not found["degraded"], "both replicas have counted in Redis all the time"
    assert sum(line.tokens for line in noted) == found["used"], "the replicas' notes are whole"
    off = found["charged"] - found["refunded"] - found["used"]
    measured = f"{found['charged']} charged, {found['refunded']} refunded, {found['used']} used: {off} off"
    say(Figure(13, "refunds", measured, "exact", off == 0))


async def test_slots_of_a_killed_replica_come_back(redis: RedisServer, tmp_path: Path) -> None:
    """kill -9 while it holds every slot: its leases run out, and the other replica gets them."""
    lease_s, slots = 1.0, 3
    with ExitStack() as stack:
        settings: dict[str, object] = {"max_concurrency": slots, "limits_lease_s": lease_s}
        first, second = replicas(stack, tmp_path, redis, **settings)
        body = {"model": "policy", "messages": MESSAGES}
        long = {"messages": MESSAGES, "reference": "no", "max_iterations": 20, "candidates": 16}
        long |= {"patience": 20, "stream": True}
        async with aiohttp.ClientSession() as session:
            held = [await session.post(f"{first.url}/v1/improve", json=long) for _ in range(slots)]
            first.process.kill()
            killed = time.monotonic()
            answer = await session.post(f"{second.url}/v1/chat/completions", json=body)
            waited = time.monotonic() - killed
            for one in held:
                one.close()
            assert answer.status == 200
    bar = f"within {lease_s + 0.5:g} s (lease {lease_s:g} s)"
    say(Figure(13, "a slot of a killed replica", f"free after {waited:.2f} s", bar, waited < lease_s + 0.5))
