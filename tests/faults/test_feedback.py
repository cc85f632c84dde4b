"""Row 8: feedback that was acknowledged is there, whatever happens to the server and its database."""

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store.database import Database, upgrade_database
from tests.app import postgres
from tests.app.conftest import execute
from tests.faults.figures import Figure, count, say
from tests.faults.forked import USER_TOO, Nursery, Server

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
ROW = 8


@contextmanager
def cluster_or_skip() -> Iterator[str]:
    """A PostgreSQL of the test's own, to be stopped."""
    with ExitStack() as stack:
        try:
            url = stack.enter_context(postgres.cluster())
        except RuntimeError as error:
            pytest.skip(str(error))
        yield url


def said(name: object, size: int = 20) -> dict[str, Any]:
    text = random.Random(str(name)).randbytes(size // 2).hex()  # that no database can compress away
    return {"type": "texts", "messages": MESSAGES, "preferred": f"{name} {text}", "other": "b"}


async def post(client: httpx.AsyncClient, name: object, size: int = 20) -> tuple[int, str]:
    """Status and id, or code; 0 where the connection broke."""
    try:
        answer = await client.post("/v1/feedback", json=said(name, size))
    except httpx.TransportError:
        return 0, ""
    body = answer.json()
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) > 0
    return answer.status_code, str(body["id"] if answer.status_code == 201 else body["error"]["code"])


def kind_of(database: str) -> str:
    return "SQLite" if database.startswith("sqlite") else "PostgreSQL"


async def stored(database: str) -> set[str]:
    """Ids of the feedback whose pair is there too."""
    joined = "SELECT f.id FROM feedback f JOIN feedback_pairs p ON p.feedback = f.number"
    return {name for (name,) in await execute(database, joined)}


async def killed_after(server: Server, number: int, round_: int) -> list[str]:
    """What it acknowledged to four clients until it was killed, at the moment of the `number`-th."""
    known: list[str] = []

    async def keep_posting(client: httpx.AsyncClient, who: int) -> None:
        for n in range(1000):
            status, name = await post(client, f"{round_}-{who}-{n}")
            if status != 201:
                assert status == 0
                return
            known.append(name)
            if len(known) == number:
                os.kill(server.pid, 9)

    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        await asyncio.gather(*(keep_posting(client, who) for who in range(4)))
    return known


async def test_feedback_outlives_kill_9(forks: Nursery, database: str) -> None:
    rounds, draw = count(100, 5), random.Random(1)
    known: list[str] = []
    for number in range(rounds):
        server = await forks.server(database)
        known += await killed_after(server, draw.randint(1, 9), number)
        server.kill()
    lost = set(known) - await stored(database)
    say(
        Figure(
            ROW,
            f"kill -9 right after a feedback 2xx, {kind_of(database)}",
            f"{rounds} kills, {len(known)} acknowledged, {len(lost)} lost",
            "every row is there, 100 of 100",
            not lost and len(known) >= rounds,
        )
    )


Answers = list[tuple[int, str]]


async def flooded(server: Server, number: int, size: int = 20, into: Answers | None = None) -> Answers:
    """What so many posts, of four clients, were answered; `into` gets it as it comes."""
    answers: Answers = [] if into is None else into

    async def in_turn(client: httpx.AsyncClient, numbers: range) -> None:
        for n in numbers:
            answers.append(await post(client, f"{size}-{n}", size))

    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        await asyncio.gather(*(in_turn(client, range(k, number, 4)) for k in range(4)))
    return answers


def acknowledged(answers: Answers) -> set[str]:
    return {name for status, name in answers if status == 201}


def say_refused(what: str, answers: Answers, afterwards: int, lost: set[str]) -> None:
    """The figure of a database that fails: while it does, 503; what was acknowledged is there; then it goes
    on by itself."""
    refused = answers.count((503, "store_unavailable"))
    others = len(answers) - refused - len(acknowledged(answers))
    say(
        Figure(
            ROW,
            what,
            f"{refused} refused with 503 and Retry-After, {len(acknowledged(answers))} acknowledged,"
            f" {len(lost)} of these lost, {others} other answers, {afterwards} accepted afterwards",
            "503, never a false acknowledgement",
            refused > 0 and not others and not lost and afterwards > 0,
        )
    )


async def test_a_locked_database_acknowledges_nothing(forks: Nursery, database: str) -> None:
    server, number = await forks.server(database), count(40, 4)
    if database.startswith("sqlite"):
        with closing(sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answers = await flooded(server, number)
            other.execute("ROLLBACK")
    else:
        lock = Database(database)
        async with lock.engine.begin() as connection:
            await connection.exec_driver_sql("LOCK TABLE feedback IN EXCLUSIVE MODE")
            answers = await flooded(server, number)
        await lock.close()
    after = acknowledged(await flooded(server, 4, 21))
    lost = (acknowledged(answers) | after) - await stored(database)
    say_refused(f"locked, {kind_of(database)}", answers, len(after), lost)


async def test_a_postgresql_that_crashes_loses_nothing_that_was_acknowledged(forks: Nursery) -> None:
    """A cluster of its own, stopped for real while feedback comes in. Its default is to commit in memory."""
    with cluster_or_skip() as cluster:
        await execute(cluster, "ALTER DATABASE postgres SET synchronous_commit = off")
        await upgrade_database(cluster)
        server = await forks.server(cluster)
        known: set[str] = set()
        answers: Answers = []
        for round_ in range(count(10, 2)):
            now: Answers = []
            posting = asyncio.create_task(flooded(server, 100, 100 + round_, now))
            async with asyncio.timeout(20):
                while len(now) < 5:
                    await asyncio.sleep(0.001)
            await asyncio.to_thread(postgres.stop, cluster)
            await posting
            answers += now + await flooded(server, 4, 200 + round_)
            await asyncio.to_thread(postgres.start, cluster)
            async with asyncio.timeout(20):
                while not (after := acknowledged(await flooded(server, 1, 300 + round_))):
                    await asyncio.sleep(0.05)
            known |= acknowledged(answers) | after
        say_refused("down, PostgreSQL", answers, len(after), known - await stored(cluster))


async def test_a_full_disk_acknowledges_nothing(forks: Nursery, disk: Path, tmp_path: Path) -> None:
    """A real file system, in a mount namespace; in the end it grows."""
    if not forks.has_a_namespace:
        pytest.skip("this machine lets nobody mount a file system in a namespace")
    server = await forks.server(f"sqlite:///{disk}/pit.db")
    answers = await flooded(server, count(200, 40), 20_000)
    user_too = ("--user", "--preserve-credentials") if USER_TOO else ()
    grow = ["nsenter", "--target", str(server.pid), "--mount", *user_too, "mount", "-o", "remount,size=9m"]
    subprocess.run([*grow, str(disk)], check=True)
    after = acknowledged(await flooded(server, 4, 20_001))
    server.kill()
    # SQLite would resolve this path, to one of our own namespace.
    shutil.copytree(f"/proc/{forks.process.pid}/root{disk}", tmp_path / "copy")
    lost = (acknowledged(answers) | after) - await stored(f"sqlite:///{tmp_path}/copy/pit.db")
    say_refused("full, SQLite", answers, len(after), lost)


async def test_a_full_postgresql_acknowledges_nothing(forks: Nursery) -> None:
    """The table of feedback alone, on a real file system of its own."""
    if USER_TOO or not forks.has_a_namespace:
        pytest.skip("needs root, to mount a file system for PostgreSQL")
    with cluster_or_skip() as cluster:
        await upgrade_database(cluster)
        await asyncio.to_thread(postgres.stop, cluster)
        await asyncio.to_thread(postgres.start, cluster, "600k")
        await execute(cluster, f"CREATE TABLESPACE tiny LOCATION '{postgres.tiny_folder(cluster)}'")
        await execute(cluster, "ALTER TABLE feedback_pairs SET TABLESPACE tiny")
        server = await forks.server(cluster)
        answers = await flooded(server, count(200, 40), 20_000)
        await execute(cluster, "ALTER TABLE feedback_pairs SET TABLESPACE pg_default")
        after = acknowledged(await flooded(server, 4, 20_001))
        lost = (acknowledged(answers) | after) - await stored(cluster)
        say_refused("full, PostgreSQL", answers, len(after), lost)
