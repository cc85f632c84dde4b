"""Stored runs, on SQLite and on PostgreSQL: what was answered can be read again, byte for byte."""

import asyncio
import json
from typing import Any

import pytest

from app.errors import EngineFailed
from app.improve.options import Models
from app.runs import request_json
from app.schemas import ImproveRequest, RunSummary
from tests.app.conftest import Serve, execute
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.identified import identify
from tests.app.test_api import assert_error, events_of, longer_is_better

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
BODY: dict[str, Any] = {"messages": MESSAGES, "reference": "no", "seed": 3}


def slow(delay_s: float = 0.02, **scorer: Any) -> Models:
    """Every iteration adds thirty words, one each `delay_s`, and is better."""
    engine = FakeEngine(script=lambda m: str(m[-2]["content"]) + " word" * 30, delay_s=delay_s)
    return fake_models(
        policy=FakeEngine(script=lambda _: "draft " * 30, delay_s=delay_s),
        improver=engine,
        scorer=FakeScorer(value=lambda t: float(len(t)), **scorer),
    )


SLOW_BODY = BODY | {"max_tokens": 100, "max_iterations": 3}


async def until_running(client: Any) -> str:
    """The id of the one run that runs."""
    live = client.app.state.runs.live
    async with asyncio.timeout(5):
        while not live:
            await asyncio.sleep(0.001)
    return str(next(iter(live)))


async def test_an_answer_can_be_read_again(serve: Serve, database: str) -> None:
    client = await serve(longer_is_better(), database=database)
    sent = BODY | {"metadata": {"a": "ä\u0000"}, "stream": False}
    answer = (await client.post("/v1/improve", json=sent)).json()
    assert answer["stored"] is True
    run = (await client.get(f"/v1/improve/{answer['id']}")).json()
    assert run["object"] == "improvement.run"
    assert (run["id"], run["state"], run["result"], run["error"]) == (answer["id"], "completed", answer, None)
    assert run["finished"] >= run["created"]
    assert run["request"].items() >= {k: v for k, v in sent.items() if k != "stream"}.items()
    assert "stream" not in run["request"]


async def test_the_events_are_the_very_bytes_of_the_stream_from_every_place(
    serve: Serve, database: str
) -> None:
    """A client that lost its connection after any event sees the rest as if it had not."""
    client = await serve(fake_models(), database=database)
    body = BODY | {"candidates": 3, "patience": 3, "stream": True, "metadata": {"a": "b"}}
    live = (await client.post("/v1/improve", json=body)).content
    blocks = [block + b"\n\n" for block in live.split(b"\n\n") if block]
    final = events_of(live.decode())[-1]
    assert final["type"] == "run.completed"
    assert final["improvement"]["stored"] is True
    path = f"/v1/improve/{final['improvement']['id']}/events"
    for number in range(len(blocks)):
        suffix = b"".join(blocks[number:])
        assert (await client.get(path, params={"after": number})).content == suffix
        assert (await client.get(path, headers={"last-event-id": str(number)})).content == suffix
    both = await client.get(path, params={"after": 1}, headers={"last-event-id": str(len(blocks) - 1)})
    assert both.content == blocks[-1]
    for number in (len(blocks), len(blocks) + 7):
        done = await client.get(path, params={"after": number})
        assert (done.status_code, done.content) == (204, b""), "a browser would connect again for ever"
    run = (await client.get(f"/v1/improve/{final['improvement']['id']}")).json()
    assert run["result"] == final["improvement"]


async def test_a_unary_run_has_events_too(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    answer = (await client.post("/v1/improve", json=BODY)).json()
    events = events_of((await client.get(f"/v1/improve/{answer['id']}/events")).text)
    assert events[0]["type"] == "run.created"
    assert events[-1]["improvement"] == answer
    assert [e["sse_id"] for e in events] == list(range(1, len(events) + 1))


async def test_a_running_run_can_be_followed_to_its_end(serve: Serve, database: str) -> None:
    """Followers who come at any moment see what the caller sees, the rest as it comes."""
    client = await serve(slow(), database=database)
    caller = asyncio.create_task(client.post("/v1/improve", json=SLOW_BODY | {"stream": True}))
    run_id = await until_running(client)
    path, followers = f"/v1/improve/{run_id}/events", []
    for after in (0, 5, 20, 10_000):
        followers.append((after, asyncio.create_task(client.get(path, params={"after": after}))))
        await asyncio.sleep(0.15)
    state = (await client.get(f"/v1/improve/{run_id}")).json()
    assert (state["state"], state["finished"], state["result"]) == ("running", None, None)
    live = (await caller).content
    blocks = [block + b"\n\n" for block in live.split(b"\n\n") if block]
    assert len(blocks) > 60
    for after, follower in followers:
        assert (await follower).content == b"".join(blocks[after:])
    assert (await client.get(path)).content == live


async def test_nothing_is_kept_of_a_run_with_store_false(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    answer = (await client.post("/v1/improve", json=BODY | {"store": False})).json()
    assert answer["stored"] is False
    for path in ("", "/events"):
        assert_error(await client.get(f"/v1/improve/{answer['id']}{path}"), 404, "run_not_found")
    assert (await client.get("/v1/improve")).json()["data"] == []
    assert await execute(database, "SELECT count(*) FROM runs") == [(0,)]
    assert await execute(database, "SELECT count(*) FROM run_events") == [(0,)]


async def test_the_setting_store_is_the_default_of_the_field(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database, store=False)
    assert (await client.post("/v1/improve", json=BODY)).json()["stored"] is False
    assert (await client.post("/v1/improve", json=BODY | {"store": True})).json()["stored"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_that_failed_is_stored_with_its_error(serve: Serve, database: str, stream: bool) -> None:
    failing = FakeEngine(failure=EngineFailed("The engine process has ended."))
    client = await serve(fake_models(improver=failing), database=database)
    answer = await client.post("/v1/improve", json=BODY | {"stream": stream})
    (run,) = (await client.get("/v1/improve")).json()["data"]
    assert (run["state"], run["stop_reason"]) == ("failed", None)
    stored = (await client.get(f"/v1/improve/{run['id']}")).json()
    shown = events_of(answer.text)[-1]["error"] if stream else answer.json()["error"]
    assert (stored["error"], stored["result"]) == (shown, None)
    again = (await client.get(f"/v1/improve/{run['id']}/events")).text
    assert events_of(again)[-1]["error"] == shown
    if stream:
        assert again == answer.text


@pytest.mark.parametrize(
    "run_id", ["imp_" + "0" * 32, "nothing", "%00", "imp_" + "0" * 5000, "imp_' OR 1=1", "%F0%9F%99%82"]
)
async def test_an_unknown_run_is_a_404(serve: Serve, database: str, run_id: str) -> None:
    client = await serve(fake_models(), database=database)
    assert_error(await client.get(f"/v1/improve/{run_id}"), 404, "run_not_found", "id")
    assert_error(await client.get(f"/v1/improve/{run_id}/events"), 404, "run_not_found", "id")
    assert_error(await client.post(f"/v1/improve/{run_id}/cancel"), 404, "run_not_found", "id")


async def test_a_place_that_is_no_event_is_a_400(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    path = f"/v1/improve/{(await client.post('/v1/improve', json=BODY)).json()['id']}/events"
    for after in ("-1", "x", str(2**31), "9" * 5000):
        assert_error(await client.get(path, params={"after": after}), 400, None, "after")
    for after in ("-1", "x", str(2**31), "9" * 5000, "²"):
        refused = await client.get(path, headers={"last-event-id": after.encode("latin-1")})
        assert_error(refused, 400, None, "last-event-id")


async def test_the_list_has_pages(serve: Serve, database: str) -> None:
    """Every run once, the newest first, also where several were created in one moment."""
    client = await serve(fake_models(), database=database)
    answers = await asyncio.gather(*(client.post("/v1/improve", json=BODY) for _ in range(7)))
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        query = {"limit": 3} | ({"after": seen[-1]} if seen else {})
        page = (await client.get("/v1/improve", params=query)).json()
        assert len(page["data"]) <= 3
        seen += [run["id"] for run in page["data"]]
    assert sorted(seen) == sorted(answer.json()["id"] for answer in answers)
    assert len(set(seen)) == 7
    first = (await client.get("/v1/improve", params={"limit": 1})).json()["data"][0]
    assert set(first) == set(RunSummary.model_fields)
    for after in ("imp_0", "\u0000"):
        assert_error(await client.get("/v1/improve", params={"after": after}), 400, None, "after")
    assert_error(await client.get("/v1/improve", params={"limit": 0}), 400, None, "limit")


async def test_the_list_says_what_was_asked_and_what_came_of_it(serve: Serve, database: str) -> None:
    """Shortly, in one line, and only to whoever may read the run."""
    client = await serve(longer_is_better(), database=database)
    identify(client.app)
    mine = {"x-test-key": "mine"}
    texts = ("What \u0000\x1b[31m is\n", "\u2028the price? " * 99)
    parts = [{"type": "text", "text": text} for text in texts]
    sent = BODY | {"messages": [*MESSAGES, {"role": "assistant", "content": "So?"}]}
    sent["messages"].append({"role": "user", "content": parts})
    answer = (await client.post("/v1/improve", json=sent, headers=mine)).json()
    kept = (await client.post("/v1/improve", json=BODY | {"min_win_probability": 1}, headers=mine)).json()
    last, first = (await client.get("/v1/improve", headers=mine)).json()["data"]
    said = (last["excerpt"], last["improved"], last["win_probability"])
    assert said == ("What is the price ?", False, None)
    assert first["excerpt"].startswith("What [31m is the price? the price?") and len(first["excerpt"]) == 200
    won = [one["win_probability"] for one in answer["iterations"] if one["accepted"]]
    assert (first["improved"], first["win_probability"], kept["improved"]) == (True, won[-1], False)
    assert (await client.get("/v1/improve", headers={"x-test-key": "other"})).json()["data"] == []


async def test_a_seed_is_drawn_returned_and_gives_the_run_again(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    body = {"messages": MESSAGES, "candidates": 2, "patience": 3}
    first, other = [(await client.post("/v1/improve", json=body)).json() for _ in range(2)]
    assert first["seed"] != other["seed"]
    run = (await client.get(f"/v1/improve/{first['id']}")).json()
    assert run["request"]["seed"] == first["seed"]
    created = events_of((await client.get(f"/v1/improve/{first['id']}/events")).text)[0]
    assert created["seed"] == first["seed"]
    again = (await client.post("/v1/improve", json=run["request"])).json()
    assert again["reference"] == first["reference"]
    assert [i["text"] for i in again["iterations"]] == [i["text"] for i in first["iterations"]]
    assert (await client.post("/v1/improve", json=BODY)).json()["seed"] == 3


def test_a_stored_request_is_the_request() -> None:
    """Nothing of it is lost that would make its replay another run, nulls inside a schema neither."""
    schema = {"const": None, "properties": {"a": {"default": None, "enum": [None, 1]}}}
    sent = ImproveRequest.model_validate(
        BODY | {"keep": {"json_schema": schema}, "metadata": {"a": "b"}, "view": "edits", "stop": ["."]}
    )
    assert ImproveRequest.model_validate_json(request_json(sent, 3)) == sent
    assert json.loads(request_json(sent.model_copy(update={"seed": None, "stream": True}), 7))["seed"] == 7


async def test_without_a_database_nothing_is_kept_and_that_is_said(serve: Serve) -> None:
    client = await serve(fake_models(), database="none")
    answer = (await client.post("/v1/improve", json=BODY)).json()
    assert answer["stored"] is False
    assert_error(await client.get(f"/v1/improve/{answer['id']}"), 404, "run_not_found")
    listed = await client.get("/v1/improve")
    assert_error(listed, 404, "run_not_found")
    assert "--database" in listed.json()["error"]["message"]
    assert_error(await client.post("/v1/improve", json=BODY | {"store": True}), 400, None, "store")
