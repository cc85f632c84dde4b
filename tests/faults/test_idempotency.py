"""Row 16: a request that is sent fifty times is executed once; a stream goes on from every one of its
events. Two servers over one database."""

import asyncio
import re
import time
from typing import Any

import httpx
import pytest

from app.store.answers import LEASE_S
from tests.app.conftest import execute
from tests.faults.figures import FULL, Figure, count, say
from tests.faults.forked import Nursery, Server

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
IMPROVE = {"messages": MESSAGES, "reference": "no", "scoring": "off", "max_tokens": 100}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "improve": ("/v1/improve", IMPROVE),
    "improve, streamed": ("/v1/improve", IMPROVE | {"stream": True}),
    "chat": ("/v1/chat/completions", {"model": "policy", "messages": MESSAGES}),
    "feedback": ("/v1/feedback", {"type": "texts", "messages": MESSAGES, "preferred": "a", "other": "b"}),
}
ROW = 16
PARALLEL = 50


@pytest.fixture
async def servers(forks: Nursery, database: str) -> list[Server]:
    return [await forks.server(database) for _ in range(2)]


async def executions(servers: list[Server], database: str) -> dict[str, int]:
    """How often each kind has been executed so far: rows, and the generations of chat."""
    pattern = re.compile(r'^pit_generation_seconds_count\{.*phase="chat".*\} (.*)$', re.MULTILINE)
    texts = [httpx.get(f"{server.url}/metrics").text for server in servers]
    chats = sum(float(n) for text in texts for n in pattern.findall(text))
    ((runs,),) = await execute(database, "SELECT count(*) FROM runs")
    ((feedback,),) = await execute(database, "SELECT count(*) FROM feedback")
    return {"improve": runs, "improve, streamed": runs, "chat": int(chats), "feedback": feedback}


async def test_sent_fifty_times_executed_once(servers: list[Server], database: str) -> None:
    rounds = count(20, 1)
    executed = different = failed = 0
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=PARALLEL)) as client:
        for number in range(rounds):
            for name, (path, body) in REQUESTS.items():
                before = await executions(servers, database)
                headers = {"Idempotency-Key": f"{name} {number}"}
                places = [servers[n % 2].url + path for n in range(PARALLEL)]
                answers = await asyncio.gather(
                    *(client.post(place, json=body, headers=headers) for place in places)
                )
                failed += sum(answer.status_code not in (200, 201) for answer in answers)
                different += len({answer.content for answer in answers}) - 1
                executed += (await executions(servers, database))[name] - before[name]
    asked = rounds * len(REQUESTS)
    say(
        Figure(
            ROW,
            f"Idempotency-Key replayed {PARALLEL} times in parallel on two servers, {kind_of(database)}",
            f"{asked} keys, {executed} executions, {different} different answers, {failed} failed",
            "one execution a key, the same bytes for all",
            executed == asked and not different and not failed,
        )
    )


async def test_a_stream_goes_on_from_every_event(servers: list[Server], database: str) -> None:
    """Asked of the server that ran it, and of the other."""
    runs, events, wrong = count(10, 1), 0, 0
    async with httpx.AsyncClient(timeout=60) as client:
        for number in range(runs):
            body = IMPROVE | {"stream": True, "seed": number}
            live = (await client.post(f"{servers[0].url}/v1/improve", json=body)).content
            blocks = [block + b"\n\n" for block in live.split(b"\n\n") if block]
            found = re.search(rb'"id":"(imp_\w+)"', live)
            assert found and b"event: run.completed" in blocks[-1]
            path = f"/v1/improve/{found[1].decode()}/events"
            for n in range(len(blocks)):
                for server in servers:
                    headers = {"last-event-id": str(n)}
                    again = (await client.get(server.url + path, headers=headers)).content
                    events, wrong = events + 1, wrong + (again != b"".join(blocks[n:]))
    say(
        Figure(
            ROW,
            f"Last-Event-ID at every event, on two servers, {kind_of(database)}",
            f"{events} suffixes of {runs} streams, {wrong} differ",
            "the same suffix",
            events > 0 and not wrong,
        )
    )


@pytest.mark.skipif(not FULL, reason="waits for a lease; make faults runs it")
async def test_the_key_of_a_killed_server_is_taken_over(servers: list[Server], database: str) -> None:
    """kill -9 in the middle of a run: those who wait at the other server get an answer of one execution."""
    body, headers = IMPROVE | {"max_iterations": 20}, {"Idempotency-Key": "killed"}
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=PARALLEL)) as client:

        async def ask(server: Server) -> httpx.Response | None:
            try:
                return await client.post(f"{server.url}/v1/improve", json=body, headers=headers)
            except httpx.TransportError:
                return None

        first = asyncio.create_task(ask(servers[0]))
        while not await execute(database, "SELECT key FROM idempotency_keys WHERE status IS NULL"):
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(ask(servers[1])) for _ in range(10)]
        servers[0].kill()
        started = time.monotonic()
        assert await first is None
        answers = await asyncio.gather(*others)
        seconds = time.monotonic() - started
    good = [answer for answer in answers if answer is not None and answer.status_code == 200]
    say(
        Figure(
            ROW,
            f"the executing server killed with kill -9, {kind_of(database)}",
            f"{len(good)} of 10 answered by the other server, {len({a.content for a in good})} answer,"
            f" after {seconds:.0f} s",
            f"one answer for all, soon after the lease of {LEASE_S:.0f} s",
            len(good) == 10 and len({a.content for a in good}) == 1 and seconds < LEASE_S + 10,
        )
    )


def kind_of(database: str) -> str:
    return "SQLite" if database.startswith("sqlite") else "PostgreSQL"
