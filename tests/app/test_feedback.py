"""Feedback: what is said becomes the right pairs, the latest word holds, and nobody sees another's."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from app.errors import EngineFailed
from app.improve.options import Models
from app.store.database import upgrade_database
from tests.app.conftest import Serve, execute
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.identified import identify
from tests.app.test_api import assert_error
from tests.app.test_store import SLOW_BODY, slow, until_running
from tests.app.test_store_upkeep import at_revision, empty

__all__ = ["empty"]

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": text} for text in ("What is", "the price ?")]},
]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is\nthe price ?"}]
REFERENCE = "it is 24 , I think"
BODY: dict[str, Any] = {"messages": MESSAGES, "reference": REFERENCE, "seed": 3, "patience": 3}


def steps() -> Models:
    """Three iterations: accepted, rejected, accepted."""
    texts = iter(["it is 24 , for sure", "no", "it costs 24 euros , for sure"])

    def script(_: Any) -> str:
        return next(texts, "no")

    return fake_models(improver=FakeEngine(script=script), scorer=FakeScorer(value=lambda t: float(len(t))))


async def add(client: httpx.AsyncClient, expected: int = 201, **body: Any) -> Any:
    headers = body.pop("headers", {})
    answer = await client.post("/v1/feedback", json=body, headers=headers)
    assert answer.status_code == expected, answer.text
    return answer.json()


async def exported(client: httpx.AsyncClient, headers: Any = None, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get("/v1/feedback/export", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/jsonl")
    return [json.loads(line) for line in answer.text.splitlines()]


async def texts_of(client: httpx.AsyncClient, **query: Any) -> list[tuple[str, str]]:
    """Chosen and rejected of every pair."""
    lines = await exported(client, **query)
    return [(line["chosen"][0]["content"], line["rejected"][0]["content"]) for line in lines]


async def improved(client: httpx.AsyncClient) -> dict[str, Any]:
    run: dict[str, Any] = (await client.post("/v1/improve", json=BODY)).json()
    assert [i["accepted"] for i in run["iterations"]] == [True, False, True]
    return run


async def counts(client: httpx.AsyncClient, name: str) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    found = re.findall(rf'^{name}_total{{\w+="(\w+)"}} (.*)$', text, re.MULTILINE)
    return {label: float(number) for label, number in found if float(number)}


VERDICT = {"preferred": "response", "other": "reference"}
FIRST, SECOND, LAST = "it is 24 , for sure", "no", "it costs 24 euros , for sure"


@pytest.mark.parametrize(
    ("said", "pairs", "preferred"),
    [
        ({"type": "comparison", **VERDICT}, [(LAST, REFERENCE)], "improved"),
        ({"type": "comparison", "preferred": "reference", "other": 1}, [(REFERENCE, FIRST)], "reference"),
        ({"type": "comparison", "preferred": 3, "other": 2}, [(LAST, SECOND)], None),
        ({"type": "correction", "text": "24 euros"}, [("24 euros", LAST)], None),
        ({"type": "correction", "text": "24", "response": 2}, [("24", SECOND)], None),
        ({"type": "edits", "accepted": [0, 1, 2]}, [(LAST, REFERENCE)], "improved"),
        ({"type": "edits", "accepted": []}, [(REFERENCE, LAST)], "reference"),
        (
            {"type": "edits", "accepted": [1, 0]},
            [("it costs 24 euros , I think", REFERENCE), ("it costs 24 euros , I think", LAST)],
            "part",
        ),
        # An iteration's edits are those from its baseline, the last one that was accepted before it.
        (
            {"type": "edits", "accepted": [1], "response": 3},
            [("it is 24 euros , for sure", FIRST), ("it is 24 euros , for sure", LAST)],
            "part",
        ),
        ({"type": "rating", "rating": 1}, [], None),
    ],
)  # fmt: skip
async def test_what_is_said_becomes_pairs(
    serve: Serve, database: str, said: Any, pairs: Any, preferred: str | None
) -> None:
    """Also when the run is gone: a pair is a snapshot."""
    client = await serve(steps(), database=database)
    run = await improved(client)
    kept = await add(client, run=run["id"], **said)
    assert (kept["object"], kept["type"], kept["run"]) == ("feedback", said["type"], run["id"])
    assert kept["pairs"] == len(pairs)
    await execute(database, "DELETE FROM runs")
    lines = await exported(client)
    assert [(line["chosen"], line["rejected"]) for line in lines] == [
        ([{"role": "assistant", "content": chosen}], [{"role": "assistant", "content": rejected}])
        for chosen, rejected in pairs
    ]
    for line in lines:
        assert line["prompt"] == PROMPT
        assert line["source"] == f"feedback/{said['type']}"
        found = line["provenance"]
        assert (found["feedback"], found["created"], found["run"]) == (kept["id"], kept["created"], run["id"])
        assert (found["models"], found["seed"]) == (run["models"], run["seed"])
        assert found["said"].items() <= (said | {"response": said.get("response", "response")}).items()
    assert await counts(client, "pit_feedback") == {said["type"]: 1.0}
    assert await counts(client, "pit_feedback_preferred") == ({preferred: 1.0} if preferred else {})


async def test_texts_need_no_run(serve: Serve, database: str) -> None:
    """Whatever a text holds: it comes back as it was."""
    client = await serve(database=database)
    odd = 'a\u0000 "ä" \u2028 🙂\n'
    await add(client, type="texts", messages=MESSAGES, preferred=odd, other="b")
    (line,) = await exported(client)
    assert line["chosen"][0]["content"] == odd
    assert (line["prompt"], line["provenance"]["models"], line["provenance"]["run"]) == (PROMPT, {}, None)


async def test_two_ratings_of_a_run_that_differ_are_a_pair(serve: Serve, database: str) -> None:
    client = await serve(steps(), database=database)
    run = await improved(client)

    async def rate(which: str | int, rating: int) -> int:
        found = await add(client, type="rating", run=run["id"], response=which, rating=rating)
        return int(found["pairs"])

    assert await rate("response", 4) == 0
    assert await rate("reference", 4) == 0
    assert await rate(2, 1) == 2
    assert await texts_of(client) == [(LAST, SECOND), (REFERENCE, SECOND)]
    # Rated anew: what follows from the old rating is gone, also where it has become equal.
    assert await rate("response", 1) == 1
    assert await texts_of(client) == [(REFERENCE, SECOND), (REFERENCE, LAST)]
    assert (await counts(client, "pit_feedback_preferred")) == {"reference": 2.0}
    # Another run is another matter.
    other = (await client.post("/v1/improve", json=BODY)).json()
    assert (await add(client, type="rating", run=other["id"], response="reference", rating=5))["pairs"] == 0


async def test_the_latest_word_holds(serve: Serve, database: str) -> None:
    client = await serve(steps(), database=database)
    run = await improved(client)
    about = {"type": "comparison", "run": run["id"]}
    first = await add(client, **about, preferred="response", other="reference")
    (line,) = await exported(client)
    second = await add(client, **about, preferred="reference", other="response")
    (later,) = await exported(client)
    assert (later["chosen"], later["rejected"]) == (line["rejected"], line["chosen"])
    assert later["id"] == line["id"], "a reader of increments knows what it replaces"
    assert later["provenance"]["cursor"] > line["provenance"]["cursor"]
    rows = await execute(database, "SELECT id, replaced_by FROM feedback ORDER BY number")
    assert rows == [(first["id"], second["id"]), (second["id"], None)]
    # The same two texts by another way.
    await add(client, type="edits", run=run["id"], accepted=[0, 1, 2])
    assert await texts_of(client) == [(LAST, REFERENCE)]
    # Other edits of the same response replace the first, and so does another correction.
    await add(client, type="edits", run=run["id"], accepted=[1])
    half = "it is 24 euros , I think"
    assert await texts_of(client) == [(half, REFERENCE), (half, LAST)]
    for text in ("one", "two"):
        await add(client, type="correction", run=run["id"], text=text)
    assert (await texts_of(client))[2:] == [("two", LAST)]


@pytest.mark.parametrize(
    ("said", "status", "param"),
    [
        ({"type": "comparison", "preferred": 3, "other": "response"}, 400, "other"),
        ({"type": "comparison", "preferred": 4, "other": "response"}, 400, "preferred"),
        ({"type": "comparison", "preferred": "draft", "other": "response"}, 400, "preferred"),
        ({"type": "comparison", "preferred": True, "other": "response"}, 400, "preferred"),
        ({"type": "correction", "text": LAST + " "}, 400, "text"),
        ({"type": "correction", "text": " "}, 400, "text"),
        ({"type": "correction", "text": "a\ud800"}, 400, "text"),
        ({"type": "edits", "accepted": [3]}, 400, "accepted"),
        ({"type": "edits", "accepted": [0, 0]}, 400, "accepted"),
        ({"type": "edits", "accepted": [-1]}, 400, "accepted.0"),
        ({"type": "rating", "rating": 0}, 400, "rating"),
        ({"type": "rating", "rating": 6}, 400, "rating"),
        ({"type": "rating", "rating": 3, "comment": "x"}, 400, "comment"),
        ({"type": "nothing"}, 400, "type"),
        ({}, 400, "type"),
        ({"type": "texts", "messages": MESSAGES, "preferred": "a", "other": "a"}, 400, "run"),
    ],
)
async def test_what_is_no_preference_is_refused(
    serve: Serve, tmp_path: Any, said: Any, status: int, param: str
) -> None:
    client = await serve(steps(), database=f"sqlite:///{tmp_path}/pit.db")
    run = await improved(client)
    body = json.dumps({"run": run["id"], **said})
    answer = await client.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert LAST not in answer.text
    assert await exported(client) == []


async def test_a_run_without_an_end_has_no_feedback(serve: Serve, database: str) -> None:
    client = await serve(slow(), database=database)
    caller = asyncio.create_task(client.post("/v1/improve", json=SLOW_BODY))
    run_id = await until_running(client)
    refused = await client.post("/v1/feedback", json={"type": "rating", "run": run_id, "rating": 3})
    assert_error(refused, 409, None, "run")
    await client.post(f"/v1/improve/{run_id}/cancel")
    await caller
    await add(client, type="rating", run=run_id, rating=3)
    broken = await serve(fake_models(improver=FakeEngine(failure=EngineFailed("x"))), database=database)
    await broken.post("/v1/improve", json=BODY)
    (failed,) = [r for r in (await broken.get("/v1/improve")).json()["data"] if r["state"] == "failed"]
    refused = await broken.post("/v1/feedback", json={"type": "rating", "run": failed["id"], "rating": 3})
    assert_error(refused, 400, None, "run")


async def test_a_run_that_is_not_there_and_another_s_are_alike(serve: Serve, database: str) -> None:
    client = await serve(steps(), database=database)
    identify(client.app)
    mine, other, admin = {"x-test-key": "a"}, {"x-test-key": "b"}, {"x-test-key": "c", "x-test-admin": "1"}
    run = (await client.post("/v1/improve", json=BODY, headers=mine)).json()
    body: dict[str, Any] = {"type": "comparison", **VERDICT}
    unknown = await client.post("/v1/feedback", json=body | {"run": "imp_" + "0" * 32}, headers=mine)
    foreign = await client.post("/v1/feedback", json=body | {"run": run["id"]}, headers=other)
    assert_error(unknown, 404, "run_not_found", "run")
    assert (foreign.status_code, foreign.json()) == (404, unknown.json())
    for headers in (mine, admin):
        await add(client, run=run["id"], **body, headers=headers)
    # Free-standing feedback of two owners about the same: neither replaces the other's.
    texts: dict[str, Any] = {"type": "texts", "messages": MESSAGES}
    await add(client, **texts, preferred="x", other="y", headers=mine)
    await add(client, **texts, preferred="y", other="x", headers=other)
    for headers, number in ((mine, 2), (other, 1)):
        assert len(await exported(client, headers)) == number
    # An admin gets all, and what two owners said alike once.
    lines = await exported(client, admin)
    assert [line["chosen"][0]["content"] for line in lines] == [LAST, "x", "y"]
    assert not [word for word in ("owner", '"a"', '"b"') if word in json.dumps(lines)]


async def test_the_export_goes_on_from_a_place(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    for number in range(7):
        await add(client, type="texts", messages=MESSAGES, preferred=f"good {number}", other="bad")
    every = await exported(client)
    assert [line["chosen"][0]["content"] for line in every] == [f"good {n}" for n in range(7)]
    assert every == await exported(client)
    for n, line in enumerate(every):
        assert await exported(client, after=line["provenance"]["cursor"]) == every[n + 1 :]
    await execute(database, "UPDATE feedback SET created = 1000 WHERE number <= 3")
    assert await exported(client, since=1001) == every[3:]
    for query in ({"after": "x"}, {"after": -1}, {"since": -1}, {"since": "nan"}):
        assert (await client.get("/v1/feedback/export", params=query)).status_code == 400


async def test_the_list_says_what_was_said_and_what_it_makes(serve: Serve, database: str) -> None:
    client = await serve(steps(), database=database)
    run = await improved(client)
    verdict: dict[str, Any] = {"type": "comparison", **VERDICT}
    first = await add(client, run=run["id"], **verdict)
    later = await add(client, type="comparison", run=run["id"], preferred="reference", other="response")
    rated = await add(client, type="rating", run=run["id"], rating=2, response=1)
    free = await add(client, type="texts", messages=MESSAGES, preferred="a secret", other="b secret")
    answer = await client.get("/v1/feedback")
    assert "secret" not in answer.text and "price" not in answer.text, "texts are in the export"
    turned = {"preferred": "reference", "other": "response"}
    assert answer.json() == {
        "object": "list",
        "data": [
            free | {"said": {}, "replaced_by": None},
            rated | {"said": {"response": 1, "rating": 2}, "replaced_by": None},
            later | {"said": turned, "replaced_by": None},
            first | {"said": VERDICT, "replaced_by": later["id"], "pairs": 0},
        ],
        "has_more": False,
    }
    assert [said["pairs"] for said in answer.json()["data"]] == [1, 0, 1, 0]


async def listed(client: httpx.AsyncClient, headers: Any = None, **query: Any) -> list[str]:
    """The ids of a page."""
    answer = await client.get("/v1/feedback", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return [said["id"] for said in answer.json()["data"]]


async def test_the_list_has_pages_and_is_asked_for_a_run_and_a_time(serve: Serve, database: str) -> None:
    """Each once, the newest first, also where several were said in one moment."""
    client = await serve(steps(), database=database)
    run = await improved(client)
    made = [(await add(client, type="correction", run=run["id"], text=f"{n}"))["id"] for n in range(5)]
    other = (await add(client, type="texts", messages=MESSAGES, preferred="a", other="b"))["id"]
    await execute(database, "UPDATE feedback SET created = 1000 WHERE number <= 4")
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        query: dict[str, Any] = {"limit": 2} | ({"after": seen[-1]} if seen else {})
        page = (await client.get("/v1/feedback", params=query)).json()
        seen += [said["id"] for said in page["data"]]
    assert seen == [other, made[4], *sorted(made[:4], reverse=True)]
    assert await listed(client, run=run["id"]) == seen[1:]
    assert await listed(client, run=run["id"], since=1001) == [made[4]]
    assert await listed(client, since=1001, after=other) == [made[4]]
    assert await listed(client, run="imp_" + "0" * 32) == []
    for query in ({"after": "fb_0"}, {"after": "\u0000"}, {"run": "\u0000"}, {"limit": 0}, {"since": "nan"}):
        refused = await client.get("/v1/feedback", params=query)
        assert_error(refused, 400, "invalid_value", min(query))


async def test_everybody_lists_their_own_feedback(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    identify(client.app)
    mine, other, admin = {"x-test-key": "a"}, {"x-test-key": "b"}, {"x-test-key": "c", "x-test-admin": "1"}
    texts: dict[str, Any] = {"type": "texts", "messages": MESSAGES, "preferred": "x", "other": "y"}
    one, two = [(await add(client, **texts, headers=headers))["id"] for headers in (mine, other)]
    assert await listed(client, mine) == [one]
    assert await listed(client, other) == [two]
    assert await listed(client, admin) == [two, one]
    refused = await client.get("/v1/feedback", params={"after": two}, headers=mine)
    assert_error(refused, 400, None, "after")


async def test_an_export_reads_page_by_page(
    serve: Serve, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.feedback.PAGE", 2)
    client = await serve(database=f"sqlite:///{tmp_path}/pit.db")
    for number in range(5):
        await add(client, type="texts", messages=MESSAGES, preferred=f"good {number}", other="bad")
        assert len(await exported(client)) == number + 1


async def test_feedback_has_a_retention_of_its_own(serve: Serve, database: str) -> None:
    client = await serve(steps(), database=database, feedback_retention_days=1, retention_days=0.001)
    run = await improved(client)
    for number in range(2):
        await add(client, type="texts", messages=MESSAGES, preferred=f"good {number}", other="bad")
    await add(client, type="rating", run=run["id"], rating=3)
    await execute(database, "UPDATE feedback SET created = created - 100000 WHERE number = 1")
    await client.app.state.runs.store.upkeep.turn()
    assert await texts_of(client) == [("good 1", "bad")]
    assert await execute(database, "SELECT count(*) FROM feedback") == [(2,)]


async def test_without_a_retention_feedback_stays(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    await add(client, type="texts", messages=MESSAGES, preferred="good", other="bad")
    await execute(database, "UPDATE feedback SET created = 1")
    await client.app.state.runs.store.upkeep.turn()
    assert await texts_of(client) == [("good", "bad")]


async def test_without_a_database_there_is_no_feedback(serve: Serve) -> None:
    client = await serve(database="none")
    body = {"type": "texts", "messages": MESSAGES, "preferred": "a", "other": "b"}
    assert_error(await client.post("/v1/feedback", json=body), 404, "feedback_not_kept")
    for path in ("/v1/feedback", "/v1/feedback/export"):
        assert_error(await client.get(path), 404, "feedback_not_kept")


async def test_a_run_of_the_first_schema_has_feedback_after_the_upgrade(serve: Serve, empty: str) -> None:
    """Nothing of the data of an earlier version is lost."""
    await at_revision(empty, "0001")
    run_id, request = "imp_" + "1" * 32, json.dumps({"messages": MESSAGES})
    result = {"reference": "a", "response": "b", "iterations": [], "models": {}, "identities": {}, "seed": 1}
    columns = "id, server, alive, created, finished, state, bytes, request, result"
    values = f"'{run_id}', 's', 1, 1, 1, 'completed', 1, '{request}', '{json.dumps(result)}'"
    await execute(empty, f"INSERT INTO runs ({columns}) VALUES ({values})")
    await upgrade_database(empty)
    client = await serve(database=empty, retention_days=0)
    said: dict[str, Any] = {"type": "comparison", **VERDICT}
    await add(client, run=run_id, **said)
    assert await texts_of(client) == [("b", "a")]
