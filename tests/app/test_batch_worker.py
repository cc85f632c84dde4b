"""What becomes of batches whose workers stop, die, are slow, or lose their database."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.batch.worker import MAX_ATTEMPTS
from app.improve.options import Models
from tests.app.batching import MESSAGES, jsonl, line, results, submit, until
from tests.app.conftest import Serve, execute
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.test_batches import slow

LONG: dict[str, Any] = {"messages": MESSAGES, "reference": "no", "max_iterations": 6}


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.batch.worker.POLL_S", 0.1)
    monkeypatch.setattr("app.batch.worker.UPKEEP_S", 0.3)


def engine_of(models: Models) -> FakeEngine:
    assert isinstance(models.improver, FakeEngine)
    return models.improver


def improving(delay_s: float) -> Models:
    """Every iteration adds a word, and is better."""
    engine = FakeEngine(script=lambda m: str(m[-2]["content"]) + " word", delay_s=delay_s)
    return fake_models(improver=engine, scorer=FakeScorer(value=lambda t: float(len(t))))


async def saved(database: str, iterations: int) -> None:
    """Until the progress of the one item holds so many iterations."""
    async with asyncio.timeout(10):
        while True:
            for (progress,) in await execute(database, "SELECT progress FROM batch_items"):
                if progress and progress.count('"index"') >= iterations:
                    return
            await asyncio.sleep(0.01)


async def test_a_server_that_stops_hands_its_items_over(serve: Serve, database: str) -> None:
    """The other one goes on at once, long before a lease ends, behind the last finished iteration; the run
    keeps its id."""
    first, second = improving(0.05), improving(0.0)
    client = await serve(first, database=database)
    made = await submit(client, jsonl([line("a", **LONG)]))
    await saved(database, 2)
    ((progress,),) = await execute(database, "SELECT progress FROM batch_items")
    await client.app.state.batches.stop()
    other = await serve(second, database=database)
    batch = await until(other, made["id"], timeout_s=5)
    assert batch["status"] == "completed"
    output, _ = await results(other, batch)
    body = output["a"]["response"]["body"]
    assert [i["text"] for i in body["iterations"]] == ["no" + " word" * n for n in range(1, 7)]
    assert body["id"] in progress
    assert 6 <= engine_of(first).started + engine_of(second).started <= 7
    metrics = (await other.get("/metrics")).text
    tokens = float(engine_of(second).completion_tokens)
    counted = f'pit_tokens_total{{kind="completion",phase="improve"}} {tokens}'
    assert counted in metrics, "a server counts what it has done itself"


async def test_progress_that_another_version_has_written_is_begun_anew(serve: Serve, database: str) -> None:
    models = improving(0.0)
    client = await serve(improving(0.05), database=database)
    made = await submit(client, jsonl([line("a", **LONG)]))
    await saved(database, 2)
    await client.app.state.batches.stop()
    await execute(database, """UPDATE batch_items SET progress = '{"steps": 1}'""")
    batch = await until(await serve(models, database=database), made["id"])
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert engine_of(models).started == 6


async def test_what_somebody_else_has_taken_is_not_written(serve: Serve, database: str) -> None:
    """A worker that was believed dead and was not comes too late; the item has the other's result, once."""
    client = await serve(improving(0.05), database=database)
    made = await submit(client, jsonl([line("a", **LONG)]))
    await saved(database, 1)
    await execute(database, f"UPDATE batch_items SET worker = 'other', lease = {time.time() + 60}")
    worker = client.app.state.batches.worker
    async with asyncio.timeout(5):
        while worker._running:
            await asyncio.sleep(0.01)
    assert 'pit_batch_items_total{outcome="lost"} 1.0' in (await client.get("/metrics")).text
    assert await execute(database, "SELECT worker, output FROM batch_items") == [("other", None)]
    await execute(database, "UPDATE batch_items SET lease = 1")
    batch = await until(client, made["id"])
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_the_lease_is_kept_while_a_server_works(serve: Serve, database: str) -> None:
    """An item that takes longer than a lease stays with its server; another server finds nothing to do."""
    models, idle = improving(0.05), improving(0.0)
    client = await serve(models, database=database, batch_lease_s=0.2)
    await serve(idle, database=database, batch_lease_s=0.2)
    made = await submit(client, jsonl([line("a", **LONG)]))
    await until(client, made["id"])
    started = engine_of(models).started, engine_of(idle).started
    assert sorted(started) == [0, 6], "one of them did all of it"


async def test_an_item_that_kills_its_servers_is_given_up(serve: Serve, database: str) -> None:
    client = await serve(slow(), database=database, batch_concurrency=1)
    made = await submit(client, jsonl([line("a"), line("b")]))
    await until(client, made["id"], "in_progress")
    dead = f"UPDATE batch_items SET attempts = {MAX_ATTEMPTS} WHERE line = 2"
    await execute(database, dead)
    batch = await until(client, made["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    _, errors = await results(client, batch)
    assert errors["b"]["response"]["body"]["error"]["code"] == "server_stopped"


async def test_a_result_waits_for_a_database_that_is_away(serve: Serve, tmp_path: Path) -> None:
    """Nothing that is done is done again."""
    file, models = tmp_path / "pit.db", improving(0.02)
    database = f"sqlite:///{file}"
    client = await serve(models, database=database, store_timeout_s=0.2)
    made = await submit(client, jsonl([line("a", **LONG)]))
    await saved(database, 1)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(1)
        other.execute("ROLLBACK")
    batch = await until(client, made["id"])
    assert batch["status"] == "completed"
    assert engine_of(models).started == 6


async def test_a_reader_that_died_is_followed_by_another(serve: Serve, database: str) -> None:
    """What it had added is not there twice."""
    client = await serve(fake_models(), database=database)
    await client.app.state.batches.stop()
    made = await submit(client, jsonl([line(f"n{n}") for n in range(3)]))
    await execute(
        database,
        "INSERT INTO batch_items (batch_id, line, custom_id, body, lease, attempts)"
        f" VALUES ('{made['id']}', 1, 'n0', '{{}}', 0, 0), ('{made['id']}', 9, 'gone', '{{}}', 0, 0)",
    )
    await execute(database, f"UPDATE batches SET worker = 'dead', lease = {time.time() + 1}")
    other = await serve(fake_models(), database=database)
    batch = await until(other, made["id"])
    output, errors = await results(other, batch)
    assert (sorted(output), errors) == (["n0", "n1", "n2"], {})


async def test_an_end_that_was_interrupted_is_made_again(serve: Serve, database: str) -> None:
    """Its half-written files are never seen."""
    client = await serve(fake_models(), database=database)
    made = await submit(client, jsonl([line(f"n{n}") for n in range(3)]))
    await until(client, made["id"])
    await client.app.state.batches.stop()
    again = await submit(client, jsonl([line(f"n{n}") for n in range(3)]))
    ending = "UPDATE batches SET status = 'finalizing', in_progress = 1, total = 3"
    await execute(database, f"{ending} WHERE id = '{again['id']}'")
    for number in range(3):
        output = json.dumps({"custom_id": f"n{number}"})
        await execute(
            database,
            "INSERT INTO batch_items (batch_id, line, custom_id, attempts, succeeded, output)"
            f" VALUES ('{again['id']}', {number + 1}, 'n{number}', 1, true, '{output}')",
        )
    await execute(
        database,
        "INSERT INTO files (id, created, purpose, filename, bytes, complete)"
        f" VALUES ('file-half', {time.time()}, 'batch_output', 'half', 0, false)",
    )
    other = await serve(fake_models(), database=database)
    batch = await until(other, again["id"])
    found, _ = await results(other, batch)
    assert sorted(found) == ["n0", "n1", "n2"]
    listed: list[dict[str, Any]] = (await other.get("/v1/files?purpose=batch_output")).json()["data"]
    assert "file-half" not in [file["id"] for file in listed]
    assert len(listed) == 2


async def test_a_server_with_no_concurrency_works_on_no_item(serve: Serve, database: str) -> None:
    """It takes files and batches; another server does the work."""
    models = fake_models()
    client = await serve(models, database=database, batch_concurrency=0)
    made = await submit(client, jsonl([line("a")]))
    await until(client, made["id"], "in_progress")
    async with asyncio.timeout(5):
        while "\npit_batch_items_waiting 1.0\n" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.02)
    assert engine_of(models).started == 0
    await serve(fake_models(), database=database)
    assert (await until(client, made["id"]))["status"] == "completed"


async def test_a_server_that_drains_takes_no_more_items(serve: Serve, database: str) -> None:
    models = fake_models()
    drains = await serve(models, database=database)
    drains.app.state.runtime.lifecycle.draining = True
    client = await serve(fake_models(), database=database, batch_concurrency=0)
    made = await submit(client, jsonl([line("a")]))
    await until(client, made["id"], "in_progress")
    await asyncio.sleep(0.5)  # five turns of its worker
    assert engine_of(models).started == 0
