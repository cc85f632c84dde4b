"""The table of feedback: what it keeps of whatever is said, how it is read, where it is committed."""

import asyncio
import json
import time
import tracemalloc
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.store.database import Database, upgrade_database
from app.store.feedback import FeedbackRecord, FeedbackTable, Pair, Wanted, pair_key
from app.store.records import digest
from tests.app.conftest import Serve, execute
from tests.app.test_feedback import MESSAGES, add


def record(chosen: str, rejected: str, owner: str | None = None, **more: Any) -> FeedbackRecord:
    prompt = '[{"role":"user","content":"x"}]'
    known = {
        "id": digest(chosen, rejected, str(more.get("number")))[:32], "owner": owner, "created": 1.0,
        "kind": "texts", "run_id": None, "subject": pair_key(owner, prompt, chosen, rejected),
        "prompt": prompt, "provenance": "{}", "pairs": [Pair(chosen, rejected)],
    }  # fmt: skip
    more.pop("number", None)
    return FeedbackRecord(**(known | more))


SAID = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("pqrs"), st.sampled_from("pqrs"), st.integers(0, 5)),
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=SAID)
async def test_whatever_is_said_the_last_word_about_a_pair_is_kept(tmp_path_factory: Any, said: Any) -> None:
    """Comparisons (0) and ratings (1 to 5) in any order, against the rules said in another way."""
    url = f"sqlite:///{tmp_path_factory.mktemp('law')}/pit.db"
    await upgrade_database(url)
    database = Database(url)
    table = FeedbackTable(database)
    expected: dict[Any, tuple[str, str, str]] = {}
    ratings: dict[str, dict[str, int]] = {"a": {}, "b": {}}
    for number, (owner, one, other, rating) in enumerate(said):
        if rating:
            subject = digest(owner, "rating", one)
            about = {"kind": "rating", "run_id": "r", "subject": subject, "rated": (one, rating)}
            await table.add(record(one, other, owner, number=number, **about, pairs=[]))
            ratings[owner][one] = rating
            for text, theirs in ratings[owner].items():
                key = (owner, frozenset((one, text)))
                if text != one and theirs != rating:
                    better, worse = (one, text) if rating > theirs else (text, one)
                    expected[key] = (better, worse, "rating")
                elif expected.get(key, ("", "", ""))[2] == "rating":
                    del expected[key]
        elif one != other:
            await table.add(record(one, other, owner, number=number))
            expected[owner, frozenset((one, other))] = (one, other, "texts")
    for owner in "ab":
        rows = await table.page(Wanted(await table.last(), 0.0, False, owner), 0, 100)
        found = sorted((json.loads(row.chosen), json.loads(row.rejected)) for row in rows)
        assert found == sorted(pair[:2] for (whose, _), pair in expected.items() if whose == owner)
    every = await table.page(Wanted(await table.last(), 0.0, True, None), 0, 100)
    alike = {(json.loads(row.chosen), json.loads(row.rejected)) for row in every}
    assert len(every) == len(alike) and alike == {pair[:2] for pair in expected.values()}
    await database.close()


async def test_an_export_of_many_takes_little_memory(tmp_path: Any) -> None:
    """A page at a time, whatever there is."""
    url = f"sqlite:///{tmp_path}/pit.db"
    await upgrade_database(url)
    database = Database(url)
    table, text, n = FeedbackTable(database), "x" * 2000, 1000

    def fill(connection: Any) -> None:
        for number in range(n):
            table._add(connection, record(f"{text}{number}", text))

    await database.write(fill)
    tracemalloc.start()
    try:
        wanted, after, seen = Wanted(await table.last(), 0.0, False, None), 0, 0
        while rows := await table.page(wanted, after, 100):
            after, seen = rows[-1].number, seen + len(rows)
        assert seen == n
        assert tracemalloc.get_traced_memory()[1] < 1_500_000, "of 4 MB"
    finally:
        tracemalloc.stop()
        await database.close()


async def test_feedback_is_committed_to_the_disk(serve: Serve, database: str) -> None:
    """Not only to the operating system, as runs are; on PostgreSQL also where its default is to hurry."""
    found = Database(database)
    if found.is_sqlite:
        question, hurried, safe = "PRAGMA synchronous", 1, 2
    else:
        name = database.split("/")[3].split("?")[0]
        await execute(database, f"ALTER DATABASE {name} SET synchronous_commit = off")
        question, hurried, safe = "SHOW synchronous_commit", "off", "on"  # type: ignore[assignment]

    def ask(connection: Any) -> Any:
        return connection.exec_driver_sql(question).scalar()

    assert await found.write(ask) == hurried
    assert await found.write(ask, durable=True) == safe
    assert await found.write(ask) == hurried
    await found.close()
    client = await serve(database=database)
    how = []
    table = client.app.state.runs.store.feedback
    original = table._add

    def watched(connection: Any, kept: FeedbackRecord) -> Any:
        how.append(ask(connection))
        return original(connection, kept)

    table._add = watched
    await add(client, type="texts", messages=MESSAGES, preferred="a", other="b")
    assert how == [safe]


async def test_who_reads_on_from_a_cursor_misses_nothing(database: str) -> None:
    """A slow writer and a quick one on another server: no pair appears behind one that was seen."""
    servers = [Database(database, timeout_s=20) for _ in range(2)]
    await servers[0].open()
    slow, quick = (FeedbackTable(found) for found in servers)

    def dawdle(connection: Any) -> None:
        slow._add(connection, record("slow", "bad"))
        if slow.database.is_sqlite:
            time.sleep(0.4)
        else:
            connection.exec_driver_sql("SELECT pg_sleep(0.4)")

    writing: list[asyncio.Task[Any]] = [asyncio.create_task(servers[0].write(dawdle))]
    await asyncio.sleep(0.15)
    writing.append(asyncio.create_task(quick.add(record("quick", "bad"))))
    seen: list[str] = []
    after = 0
    while len(seen) < 2:
        done = all(task.done() for task in writing)
        for row in await quick.page(Wanted(2**62, 0.0, False, None), after, 100):
            after = row.number
            seen.append(row.chosen)
        assert not done or len(seen) == 2, seen
        await asyncio.sleep(0.02)
    await asyncio.gather(*writing)
    for found in servers:
        await found.close()
