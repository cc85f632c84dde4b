"""Batches, on SQLite and on PostgreSQL: from the input file to the results."""

import asyncio
import time
from typing import Any

import pytest

from app.errors import EngineFailed
from app.improve.options import Models
from tests.app.batching import IMPROVE, MESSAGES, jsonl, line, lines_of, results, submit, until
from tests.app.conftest import Serve, execute
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.test_api import assert_error, longer_is_better

CHAT: dict[str, Any] = {"model": "policy", "messages": MESSAGES, "seed": 1}


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that looks around more often."""
    monkeypatch.setattr("app.batch.worker.POLL_S", 0.2)
    monkeypatch.setattr("app.batch.worker.UPKEEP_S", 0.3)


def slow(delay_s: float = 0.05) -> Models:
    """Items that take a second or so."""
    engine = FakeEngine(script=lambda m: str(m[-2]["content"]) + " word" * 10, delay_s=delay_s)
    return fake_models(improver=engine, scorer=FakeScorer(value=lambda t: float(len(t))))


async def test_the_result_of_a_line_is_what_its_route_answers(serve: Serve, database: str) -> None:
    """Status, body and error of every line, bad ones too; and its shape is OpenAI's."""
    client = await serve(longer_is_better(), database=database)
    bodies: list[dict[str, Any]] = [
        IMPROVE,
        IMPROVE | {"reference": None, "view": "edits", "metadata": {"ä\u0000": "b"}},
        IMPROVE | {"max_iterations": 0},
        IMPROVE | {"unknown": 1},
        {"reference": "no"},
        IMPROVE | {"messages": [{"role": "user", "content": "word " * 400}]},
        IMPROVE | {"messages": [{"role": "user", "content": "\ud800"}]},
        IMPROVE | {"strategy": "best_of_n", "scoring": "off"},
    ]
    batch = await submit(client, jsonl([line(f"n{n}", **body) for n, body in enumerate(bodies)]))
    assert (batch["object"], batch["status"], batch["errors"]) == ("batch", "validating", None)
    batch = await until(client, batch["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 8, "completed": 2, "failed": 6}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    output, errors = await results(client, batch)
    assert (sorted(output), sorted(errors)) == (["n0", "n1"], [f"n{n}" for n in range(2, 8)])
    for number, body in enumerate(bodies):
        found = (output | errors)[f"n{number}"]
        assert found.keys() == {"id", "custom_id", "response", "error"}
        assert found["error"] is None
        assert found["response"].keys() == {"status_code", "request_id", "body"}
        content = jsonl([body])
        online = await client.post(
            "/v1/improve", content=content, headers={"content-type": "application/json"}
        )
        assert found["response"]["status_code"] == online.status_code
        assert comparable(found["response"]["body"]) == comparable(online.json())
    assert await execute(database, "SELECT count(*) FROM runs WHERE state <> 'completed'") == [(0,)]


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs each time."""
    left = {name: value for name, value in body.items() if name not in ("id", "created", "ms", "stored")}
    if "iterations" in left:
        left["iterations"] = [i | {"ms": 0} for i in left["iterations"]]
    return left


async def test_chat_and_completions(serve: Serve, database: str) -> None:
    client = await serve(longer_is_better(), database=database)
    bodies: list[dict[str, Any]] = [
        CHAT,
        CHAT | {"model": "pit", "pit": {"max_iterations": 2}},
        CHAT | {"model": "gpt-4"},
        CHAT | {"pit": {}},
        CHAT | {"n": 2, "logprobs": True},
        CHAT | {"stream": True},
    ]
    chat = "/v1/chat/completions"
    batch = await submit(client, jsonl([line(f"n{n}", chat, **body) for n, body in enumerate(bodies)]), chat)
    output, errors = await results(client, await until(client, batch["id"]))
    assert sorted(output) == ["n0", "n1", "n4"]
    for number in (0, 1, 2, 3, 4):
        online = await client.post(chat, json=bodies[number])
        found = (output | errors)[f"n{number}"]["response"]
        assert (found["status_code"], comparable(found["body"])) == (
            online.status_code,
            comparable(online.json()),
        )
    assert errors["n5"]["response"]["body"]["error"]["param"] == "stream"
    completions, text = "/v1/completions", {"model": "policy", "prompt": ["a", "b"], "seed": 2}
    wrong = text | {"model": "pit"}
    lines = [line("a", completions, **text), line("b", completions, **wrong)]
    batch = await submit(client, jsonl(lines), completions)
    output, errors = await results(client, await until(client, batch["id"]))
    for custom_id, body in (("a", text), ("b", wrong)):
        online = await client.post(completions, json=body)
        found = (output | errors)[custom_id]["response"]
        assert comparable(found["body"]) == comparable(online.json())


@pytest.mark.parametrize(
    ("content", "code", "number", "param"),
    [
        (b"", "empty_file", None, "input_file_id"),
        (b"\n \r\n", "empty_file", None, "input_file_id"),
        (b"{", "invalid_json_line", 1, None),
        (b"\xff\xfe", "invalid_json_line", 1, None),
        (b"[" * 1900, "invalid_json_line", 1, None),
        (b"[]", "invalid_json_line", 1, None),
        (b"\n\n" + jsonl([{"custom_id": "a"}]), "missing_required_parameter", 3, "method"),
        (jsonl([line("a") | {"more": 1}]), "unknown_parameter", 1, "more"),
        (jsonl([line("a"), line("b"), line("a")]), "duplicate_custom_id", 3, "custom_id"),
        (jsonl([line("a") | {"method": "GET"}]), "invalid_method", 1, "method"),
        (jsonl([line("a", "/v1/chat/completions")]), "mismatched_endpoint", 1, "url"),
        (jsonl([line("a") | {"body": []}]), "invalid_body", 1, "body"),
        (jsonl([line("")]), "invalid_custom_id", 1, "custom_id"),
        (jsonl([line("\0")]), "invalid_custom_id", 1, "custom_id"),
        (jsonl([line("\ud800")]), "invalid_custom_id", 1, "custom_id"),
        (jsonl([line("a") | {"custom_id": 1}]), "invalid_custom_id", 1, "custom_id"),
        (jsonl([line("a", reference="x" * 3000)]), "line_too_long", 1, None),
        (jsonl([line(str(n)) for n in range(6)]), "too_many_lines", 6, None),
    ],
)
async def test_a_bad_file_fails_the_batch_and_says_where(
    serve: Serve, tmp_path: Any, content: bytes, code: str, number: int | None, param: str | None
) -> None:
    client = await serve(
        fake_models(), database=f"sqlite:///{tmp_path}/pit.db", max_body_bytes=2000, batch_max_lines=5
    )
    batch = await until(client, (await submit(client, content))["id"])
    assert batch["status"] == "failed"
    assert batch["failed_at"] is not None
    (error,) = batch["errors"]["data"]
    assert (error["code"], error["line"], error["param"]) == (code, number, param)
    assert batch["output_file_id"] is batch["error_file_id"] is None
    while await execute(f"sqlite:///{tmp_path}/pit.db", "SELECT count(*) FROM batch_items") != [(0,)]:
        await asyncio.sleep(0.01)


async def test_all_bad_lines_are_named_up_to_a_hundred(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    good = [line(f"good{n}") for n in range(500)]
    batch = await until(client, (await submit(client, jsonl(good) + b"{\n" * 150))["id"])
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(501, 601))
    assert batch["request_counts"]["total"] == 0


async def test_a_batch_is_cancelled_with_what_is_done(serve: Serve, database: str) -> None:
    """At once, though items run; those that were not executed say so, each once."""
    models = slow(0.2)
    client = await serve(models, database=database, batch_concurrency=2)
    fast = [line(f"fast{n}", reference="no", messages=[]) for n in range(4)]
    lines = [*fast, *(line(f"slow{n}") for n in range(120))]
    made = await submit(client, jsonl(lines))
    engine = models.improver
    assert isinstance(engine, FakeEngine)
    async with asyncio.timeout(10):
        while (batch := await until(client, made["id"], "in_progress"))["request_counts"]["failed"] < 4:
            await asyncio.sleep(0.02)
        while engine.running < 2:
            await asyncio.sleep(0.01)
    answer = await client.post(f"/v1/batches/{made['id']}/cancel")
    assert answer.json()["status"] in ("cancelling", "cancelled")
    started = time.monotonic()
    async with asyncio.timeout(1):
        while engine.running:
            await asyncio.sleep(0.01)
    batch = await until(client, made["id"])
    assert time.monotonic() - started < 3
    assert batch["status"] == "cancelled"
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    output, errors = await results(client, batch)
    assert len(output) + len(errors) == 124
    assert not output.keys() & errors.keys()
    assert batch["request_counts"] == {"total": 124, "completed": len(output), "failed": 4}
    left = [found for found in errors.values() if found["response"] is None]
    assert len(left) == 120 - len(output) > 100
    assert all(found["error"]["code"] == "batch_cancelled" for found in left)
    again = await client.post(f"/v1/batches/{made['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    done = await until(client, (await submit(client, jsonl(fast)))["id"])
    assert done["status"] == "completed"
    assert_error(await client.post(f"/v1/batches/{done['id']}/cancel"), 400, "batch_has_ended", "batch_id")


async def test_a_batch_whose_window_is_over_gives_what_is_done(serve: Serve, database: str) -> None:
    client = await serve(slow(), database=database, batch_concurrency=2, batch_lease_s=0.4)
    made = await submit(client, jsonl([line(f"n{n}") for n in range(40)]))
    async with asyncio.timeout(10):
        while not (await until(client, made["id"], "in_progress"))["request_counts"]["completed"]:
            await asyncio.sleep(0.02)
    await execute(database, f"UPDATE batches SET expires = {time.time()}")
    client.app.state.batches.worker.wake()
    batch = await until(client, made["id"])
    assert batch["status"] == "expired"
    assert batch["expired_at"] >= batch["expires_at"]
    output, errors = await results(client, batch)
    assert len(output) == batch["request_counts"]["completed"] >= 1
    assert len(output) + len(errors) == 40
    assert all(e["error"]["code"] == "batch_expired" and e["response"] is None for e in errors.values())


async def test_an_engine_that_fails_for_a_while_costs_no_item(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again; one that always fails is an error of its line."""
    monkeypatch.setattr("app.batch.worker.LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("app.batch.worker.POLL_S", 0.05)
    engine = FakeEngine(failure=EngineFailed("The engine process has ended."))
    client = await serve(fake_models(improver=engine), database=database)
    batch = await submit(client, jsonl([line("a"), line("b", reference="no", messages=[])]))
    async with asyncio.timeout(10):
        while engine.started < 2:
            await asyncio.sleep(0.01)
    engine.failure = None
    batch = await until(client, batch["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    engine.failure = EngineFailed("The engine process has ended.")
    batch = await until(client, (await submit(client, jsonl([line("a")])))["id"])
    _, errors = await results(client, batch)
    assert errors["a"]["response"]["status_code"] == 500
    assert errors["a"]["response"]["body"]["error"]["code"] == "engine_failed"


async def test_a_small_batch_does_not_wait_for_the_end_of_a_large_one(serve: Serve, tmp_path: Any) -> None:
    client = await serve(slow(0.02), database=f"sqlite:///{tmp_path}/pit.db", batch_concurrency=2)
    large = await submit(client, jsonl([line(f"n{n}") for n in range(40)]))
    await until(client, large["id"], "in_progress")
    small = await submit(client, jsonl([line("a")]))
    await until(client, small["id"])
    assert (await until(client, large["id"], "in_progress"))["request_counts"]["completed"] < 25


async def test_no_more_items_at_a_time_than_the_setting_says(serve: Serve, tmp_path: Any) -> None:
    models = slow(0.004)
    client = await serve(models, database=f"sqlite:///{tmp_path}/pit.db", batch_concurrency=3)
    batch = await submit(client, jsonl([line(f"n{n}") for n in range(20)]))
    most, engine = 0, models.improver
    assert isinstance(engine, FakeEngine)
    async with asyncio.timeout(10):
        while (await client.get(f"/v1/batches/{batch['id']}")).json()["status"] != "completed":
            most = max(most, engine.running)
            await asyncio.sleep(0.002)
    assert most == 3
    metrics = (await client.get("/metrics")).text
    assert 'pit_batch_items_total{outcome="completed"} 20.0' in metrics
    assert 'pit_batches_total{status="completed"} 1.0' in metrics
    assert "pit_batch_items_in_flight 0.0" in metrics


async def test_a_batch_of_another_owner_is_not_there(serve: Serve, database: str) -> None:
    """Nor are its files."""
    client = await serve(fake_models(), database=database)
    batch = await until(client, (await submit(client, jsonl([line("a")])))["id"])
    await execute(database, "UPDATE batches SET owner = 'key_other'")
    await execute(database, "UPDATE files SET owner = 'key_other'")
    for call in ("get", "cancel"):
        path = f"/v1/batches/{batch['id']}" + ("/cancel" if call == "cancel" else "")
        answer = await (client.post(path) if call == "cancel" else client.get(path))
        assert_error(answer, 404, "batch_not_found", "batch_id")
    for path in (f"/v1/files/{batch['input_file_id']}", f"/v1/files/{batch['output_file_id']}/content"):
        assert_error(await client.get(path), 404, "file_not_found", "file_id")
    assert_error(await client.delete(f"/v1/files/{batch['input_file_id']}"), 404, "file_not_found", "file_id")
    assert (await client.get("/v1/batches")).json()["data"] == []
    assert (await client.get("/v1/files")).json()["data"] == []
    body = {
        "input_file_id": batch["input_file_id"],
        "endpoint": "/v1/improve",
        "completion_window": "24h",
    }
    assert_error(await client.post("/v1/batches", json=body), 400, "invalid_input_file", "input_file_id")
    assert_error(await client.get("/v1/batches", params={"after": batch["id"]}), 400, None, "after")
    assert_error(await client.get("/v1/files", params={"after": batch["input_file_id"]}), 400, None, "after")


async def test_what_a_batch_may_ask_for(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    good = await submit(client, jsonl([line("a")]))
    body = {"input_file_id": good["input_file_id"], "endpoint": "/v1/improve", "completion_window": "24h"}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "169h"}, "completion_window"),
        ({"input_file_id": "file-" + "0" * 32}, "input_file_id"),
        ({"input_file_id": "\u0000"}, "input_file_id"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ]
    for change, param in changes:
        assert_error(await client.post("/v1/batches", json=body | change), 400, None, param)
    output = (await until(client, good["id"]))["output_file_id"]
    refused = await client.post("/v1/batches", json=body | {"input_file_id": output})
    assert_error(refused, 400, "invalid_input_file", "input_file_id")
    expiry = {"anchor": "created_at", "seconds": 7200}
    made = await client.post(
        "/v1/batches",
        json=body | {"completion_window": "1h", "metadata": {"ä": "ö"}, "output_expires_after": expiry},
    )
    batch = await until(client, made.json()["id"])
    assert (batch["metadata"], batch["expires_at"] - batch["created_at"]) == ({"ä": "ö"}, 3600)
    file = (await client.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert file["purpose"] == "batch_output"
    assert 7199 <= file["expires_at"] - file["created_at"] <= 7201
    for unknown in ("batch_0", "%00", "%F0%9F%99%82", "x" * 500):
        assert_error(await client.get(f"/v1/batches/{unknown}"), 404, "batch_not_found", "batch_id")


async def test_batches_have_pages(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    made = [(await submit(client, jsonl([line("a")])))["id"] for _ in range(5)]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        query = {"limit": 2} | ({"after": page["last_id"]} if seen else {})
        page = (await client.get("/v1/batches", params=query)).json()
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += [batch["id"] for batch in page["data"]]
    assert seen == made[::-1]


async def test_without_a_database_there_are_no_batches(serve: Serve) -> None:
    client = await serve(fake_models(), database="none")
    assert_error(await client.get("/v1/batches"), 404, "batch_not_found")
    assert_error(await client.get("/v1/files"), 404, "file_not_found")
    form: Any = {"purpose": (None, "batch"), "file": ("a", b"b")}
    refused = await client.post("/v1/files", files=form)
    assert_error(refused, 404, "file_not_found")
    assert "--database" in refused.json()["error"]["message"]


async def test_what_has_ended_is_deleted_after_its_time(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    batch = await until(client, (await submit(client, jsonl([line("a")])))["id"])
    assert await lines_of(client, batch["output_file_id"])
    worker = client.app.state.batches.worker
    await worker._upkeep()
    assert (await client.get("/v1/files")).json()["data"] != []
    await execute(database, "UPDATE batches SET ended = ended - 40 * 86400")
    await execute(database, "UPDATE files SET expires = 1 WHERE purpose = 'batch_output'")
    gone = await client.get(f"/v1/files/{batch['output_file_id']}")
    assert_error(gone, 404, "file_not_found", "file_id")
    await worker._upkeep()
    assert_error(await client.get(f"/v1/batches/{batch['id']}"), 404, "batch_not_found", "batch_id")
    left = await execute(database, "SELECT purpose FROM files")
    assert left == [("batch",)]
    assert await execute(database, "SELECT count(*) FROM file_chunks") == [(1,)]
    assert await execute(database, "SELECT count(*) FROM batch_items") == [(0,)]
