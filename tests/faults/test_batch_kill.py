"""Row 7: the worker of batches is killed again and again. Every item has its result once, the same as without
a kill, and no kill costs an item more than one iteration."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.improve.options import derive_seed
from app.schemas import ImproveRequest
from app.store.database import upgrade_database
from tests.app.batching import jsonl, line, results, submit
from tests.app.conftest import new_postgres, postgres_cluster  # noqa: F401 - a fixture
from tests.app.loops import result_of
from tests.faults.batch_server import models
from tests.faults.figures import Figure, count, say
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 4
FIRST_SEED = 5000
"""From here on no two generations of a thousand items have one seed of 32 bits."""


def body(number: int) -> dict[str, Any]:
    """A run of four iterations; every third drafts first."""
    return {
        "messages": [{"role": "user", "content": "What is the price ?"}],
        "reference": None if number % 3 == 0 else "no",
        "seed": FIRST_SEED + number,
        "max_iterations": ITERATIONS,
        "patience": ITERATIONS,
    }


class Replica:
    """One server process on the common database, which is started again after each kill."""

    def __init__(self, database: str, journal: Path) -> None:
        self.database, self.journal, self.port = database, journal, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.batch_server", str(self.port), self.database]
        self.process = subprocess.Popen([*command, str(self.journal)], cwd=ROOT, stdin=subprocess.DEVNULL)

    async def ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url) as client, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get("/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@asynccontextmanager
async def replicas(number: int, database: str, journal: Path) -> AsyncGenerator[list[Replica], None]:
    found = [Replica(database, journal) for _ in range(number)]
    try:
        for replica in found:
            replica.start()
        await asyncio.gather(*(replica.ready() for replica in found))
        yield found
    finally:
        for replica in found:
            replica.kill()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_a_killed_worker_loses_nothing_and_repeats_one_iteration(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One process on SQLite; two that share PostgreSQL, of which one is killed at a time."""
    database = f"sqlite:///{tmp_path}/pit.db"
    if backend == "postgresql":
        database = await new_postgres(request.getfixturevalue("postgres_cluster"))
        await upgrade_database(database)
    items, kills = (count(1000, 60), count(20, 3)) if backend == "sqlite" else (count(1000, 30), count(20, 1))
    journal, chance = tmp_path / "journal", random.Random(7)
    journal.touch()
    # Not in the last tenth, where a worker may have nothing left to do.
    points = sorted(chance.randrange(1, items * ITERATIONS * 9 // 10) for _ in range(kills))
    started = time.monotonic()
    async with replicas(1 if backend == "sqlite" else 2, database, journal) as servers:
        async with httpx.AsyncClient(base_url=servers[0].url, timeout=60) as client:
            made = await submit(client, jsonl([line(f"n{n}", **body(n)) for n in range(items)]))
        for point in points:
            await until_lines(journal, point)
            await asyncio.sleep(chance.random() * 0.02)
            victim = await at_work(servers, journal)
            victim.kill()
            victim.start()
            if len(servers) == 1:
                await victim.ready()
        await servers[0].ready()
        async with httpx.AsyncClient(base_url=servers[0].url, timeout=60) as client:
            batch = await ended(client, made["id"])
            output, errors = await results(client, batch)
    assert (batch["status"], errors) == ("completed", {})
    assert batch["request_counts"] == {"total": items, "completed": items, "failed": 0}
    different = [n for n in range(items) if not await same(output[f"n{n}"], n)]
    taken_over, repeated, worst = recomputed(journal, items)
    assert taken_over >= kills, "the kills met nobody at work"
    seconds = time.monotonic() - started
    where = "one process, SQLite" if backend == "sqlite" else "two processes, PostgreSQL"
    once = f"{len(output)} of {items} items once, {len(different)} differ; {kills} kills, {seconds:.0f} s"
    say(Figure(7, f"results after kill -9 ({where})", once, f"{items} once, 0 differ", not different))
    cost = f"{worst} at most, {repeated} in {taken_over} take-overs"
    say(Figure(7, f"iterations an item repeats for a kill ({where})", cost, "1 at most", worst <= 1))


async def at_work(servers: list[Replica], journal: Path) -> Replica:
    """The one that has generated last, once that is not one that was killed."""
    async with asyncio.timeout(120):
        while True:
            process = int(journal.read_text().splitlines()[-1].split()[0])
            for server in servers:
                if server.process and server.process.pid == process:
                    return server
            await asyncio.sleep(0.005)


async def until_lines(journal: Path, number: int) -> None:
    async with asyncio.timeout(120):
        while journal.read_bytes().count(b"\n") < number:
            await asyncio.sleep(0.005)


async def ended(client: httpx.AsyncClient, batch_id: str) -> Any:
    async with asyncio.timeout(300):
        while (batch := (await client.get(f"/v1/batches/{batch_id}")).json())["status"] != "completed":
            await asyncio.sleep(0.1)
    return batch


async def same(found: dict[str, Any], number: int) -> bool:
    """Whether a line's result is that of a run that nobody interrupted."""
    options = ImproveRequest.model_validate(body(number)).options()
    whole = await result_of(models(), options)
    answer = found["response"]["body"]
    texts = [(i["text"], i["gap"], i["accepted"]) for i in answer["iterations"]]
    usage = answer["usage"]
    return (
        texts == [(i.text, i.gap, i.accepted) for i in whole.iterations]
        and (answer["response"], answer["reference"]) == (whole.response, whole.reference)
        and (answer["stop_reason"], usage["total_tokens"]) == (whole.stop_reason, whole.usage.total_tokens)
    )


def recomputed(journal: Path, items: int) -> tuple[int, int, int]:
    """How often an item went from one process to another, how many iterations were generated twice for it,
    and the most that one such change cost. Nothing is generated twice by one process."""
    where = {seed: place for number in range(items) for seed, place in seeds(number)}
    assert len(where) == items * (ITERATIONS + 1)
    steps: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for text in journal.read_text().splitlines():
        process, seed = text.split()
        number, index = where[int(seed)]
        steps[number].append((process, index))
    taken_over = repeated = worst = 0
    for known in steps.values():
        for (old, before), (new, after) in pairwise(known):
            if old == new:
                assert after == before + 1, "generated twice, or out of order, by one process"
                continue
            taken_over += 1
            repeated += before + 1 - after
            worst = max(worst, before + 1 - after)
            assert after <= before + 1, "an iteration is missing"
    return taken_over, repeated, worst


def seeds(number: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The seeds of an item's draft and iterations, and what each of them is."""
    for index in range(ITERATIONS + 1):
        seed = derive_seed(FIRST_SEED + number, index, 0, "response" if index else "draft")
        assert seed is not None
        yield seed, (number, index)
