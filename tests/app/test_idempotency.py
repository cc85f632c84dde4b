"""A request that is sent again with its Idempotency-Key is not executed again, on whichever server."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.engines.base import Delta, Prompt, Sampling
from app.errors import EngineFailed
from app.improve.options import Models
from app.store.answers import KEPT_S, LEASE_S
from tests.app.conftest import Serve, execute, running
from tests.app.fakes import FakeEngine, fake_models
from tests.app.identified import identify
from tests.app.test_api import assert_error, events_of
from tests.app.test_disconnect import Client, start
from tests.app.test_store import BODY, MESSAGES, SLOW_BODY, slow

CHAT: dict[str, Any] = {"model": "policy", "messages": MESSAGES}
TEXTS = {"type": "texts", "messages": MESSAGES, "preferred": "a", "other": "b"}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "improve": ("/v1/improve", {"messages": MESSAGES}),
    "improve-stream": ("/v1/improve", {"messages": MESSAGES, "stream": True}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat-stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "completion": ("/v1/completions", {"model": "policy", "prompt": "a"}),
    "feedback": ("/v1/feedback", TEXTS),
}


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what is the same on both databases."""
    return f"sqlite:///{tmp_path}/pit.db"


KEYS = "SELECT status, lease FROM idempotency_keys"


async def post(client: Any, path: str, body: Any, key: str = "k", **headers: str) -> httpx.Response:
    answer: httpx.Response = await client.post(path, json=body, headers={"Idempotency-Key": key} | headers)
    return answer


def engines() -> tuple[Models, FakeEngine]:
    """Policy and improver are one engine, which draws other words every time."""
    engine = FakeEngine(delay_s=0.002)
    return fake_models(policy=engine, improver=engine), engine


@pytest.mark.parametrize("name", REQUESTS)
async def test_fifty_at_once_on_two_servers_are_one_execution(
    serve: Serve, database: str, name: str
) -> None:
    path, body = REQUESTS[name]
    (one, first), (two, second) = engines(), engines()
    servers = [await serve(models, database=database) for models in (one, two)]
    alone = await servers[0].post(path, json=body)
    calls = first.started
    answers = await asyncio.gather(*(post(servers[n % 2], path, body) for n in range(50)))
    assert {answer.status_code for answer in answers} == {alone.status_code}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["content-type"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 50
    assert all(len(answer.headers.get_list("x-request-id")) == 1 for answer in answers)
    if name == "feedback":
        assert await execute(database, "SELECT count(*) FROM feedback") == [(2,)]
    else:
        assert first.started + second.started <= 2 * calls + 4, "iterations differ from draw to draw"
    if name.startswith("improve"):
        assert await execute(database, "SELECT count(*) FROM runs") == [(2,)]
    # And later, from either.
    for server in servers:
        again = await post(server, path, body)
        assert (again.content, again.headers["idempotent-replayed"]) == (answers[0].content, "true")
    counted = [(await server.get("/metrics")).text for server in servers]
    executed = 'pit_idempotent_requests_total{outcome="executed"} 1.0'
    assert sum(executed in text for text in counted) == 1
    assert f'pit_requests_total{{method="POST",route="{path}",status="{alone.status_code}"}}' in counted[1]


async def test_a_stream_arrives_at_others_while_it_is_written(serve: Serve, sqlite_url: str) -> None:
    app = start(slow(0.005), database=sqlite_url)
    async with running(app):
        key = (b"idempotency-key", b"k")
        clients = [Client(app, "/v1/improve", SLOW_BODY | {"stream": True}, key) for _ in range(3)]
        async with asyncio.timeout(5):
            while not all(client.text().count("event: output.delta") > 5 for client in clients):
                await asyncio.sleep(0.005)
        assert not any("run.completed" in client.text() for client in clients)
        await asyncio.gather(*(client.task for client in clients))
        assert len({client.text() for client in clients}) == 1
        assert events_of(clients[0].text())[-1]["type"] == "run.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_does_not_end_it(serve: Serve, sqlite_url: str, stream: bool) -> None:
    """What it was for: the client's second try gets the answer of the first."""
    models = slow(delay_s=0.005)
    app = start(models, database=sqlite_url)
    async with running(app) as http:
        body = SLOW_BODY | {"stream": stream}
        client = Client(app, "/v1/improve", body, (b"idempotency-key", b"k"))
        while not app.state.runs.live:
            await asyncio.sleep(0.001)
        client.gone.set()
        async with asyncio.timeout(1):
            await client.task
        answer = await http.post("/v1/improve", content=json.dumps(body), headers=KEY_HEADERS)
        final = events_of(answer.text)[-1]["improvement"] if stream else answer.json()
        assert (final["stop_reason"], len(final["iterations"])) == ("max_iterations", 3)
        assert await execute(sqlite_url, "SELECT count(*) FROM runs") == [(1,)]
        assert 'pit_disconnects_total{route="/v1/improve"} 1.0' in (await http.get("/metrics")).text


KEY_HEADERS = {"idempotency-key": "k", "content-type": "application/json"}


async def test_the_same_key_with_another_body_is_refused(serve: Serve, database: str) -> None:
    """While the first is answered, afterwards, and on the other server."""
    servers = [await serve(slow(0.005), database=database) for _ in range(2)]
    first = asyncio.create_task(post(servers[0], "/v1/improve", SLOW_BODY))
    while not await execute(database, KEYS):
        await asyncio.sleep(0.01)
    for _ in range(2):
        for server in servers:
            refused = await post(server, "/v1/improve", SLOW_BODY | {"seed": 4})
            assert_error(refused, 422, "idempotency_key_reused", "idempotency-key")
        assert (await first).status_code == 200


async def test_a_key_belongs_to_its_owner_and_route(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    identify(client.app)
    texts = [TEXTS | {"preferred": text} for text in ("one", "two")]
    for owner, body in zip(("a", "b"), texts, strict=True):
        assert (await post(client, "/v1/feedback", body, **{"x-test-key": owner})).status_code == 201
    ids = {(await post(client, "/v1/feedback", texts[0], key)).json()["id"] for key in ("k", "l", "L")}
    assert len(ids) == 3
    assert (await post(client, "/v1/improve", BODY)).status_code == 200
    assert await execute(database, "SELECT count(*) FROM idempotency_keys") == [(6,)]


class Failing(FakeEngine):
    """Fails the first time, after a token."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
        self.failure = None if self.started else EngineFailed("The engine process has ended.")
        async for delta in super().generate(prompt, sampling):
            yield delta


@pytest.mark.parametrize("name", ["improve", "improve-stream", "chat", "chat-stream"])
async def test_what_failed_is_tried_again(serve: Serve, sqlite_url: str, name: str) -> None:
    path, body = REQUESTS[name]
    client = await serve(fake_models(policy=Failing()), database=sqlite_url)
    failed = await post(client, path, body)
    assert "engine_failed" in failed.text
    again = await post(client, path, body)
    assert again.status_code == 200
    assert "engine_failed" not in again.text
    assert (await post(client, path, body)).content == again.content


class Crashing(FakeEngine):
    """Has a bug that shows once it has begun."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
        yield Delta("a", 1)
        if self.defaults.max_tokens == 12:
            self.defaults = type(self.defaults)(0.7, max_tokens=11)
            raise ValueError("bug")
        yield Delta("b", 1, "stop")


async def test_what_crashed_is_tried_again_and_everybody_is_told(serve: Serve, sqlite_url: str) -> None:
    client = await serve(fake_models(policy=Crashing()), database=sqlite_url)
    path, body = REQUESTS["completion"]
    answers = await asyncio.gather(*(post(client, path, body) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [500] * 3
    for answer in answers:
        assert_error(answer, 500, None)
    assert (await post(client, path, body)).status_code == 200


async def test_a_refused_request_may_be_mended_under_its_key(serve: Serve, sqlite_url: str) -> None:
    client = await serve(database=sqlite_url)
    assert (await post(client, "/v1/feedback", TEXTS | {"other": "a"})).status_code == 400
    assert (await post(client, "/v1/feedback", TEXTS)).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb"])
async def test_a_key_that_is_none_is_refused(serve: Serve, tmp_path: Path, key: str) -> None:
    client = await serve(database=f"sqlite:///{tmp_path}/pit.db")
    headers = {b"idempotency-key": key.encode("latin-1")}
    refused = await client.post("/v1/feedback", json=TEXTS, headers=headers)
    assert_error(refused, 400, None, "idempotency-key")


async def test_what_is_not_kept_cannot_have_a_key(serve: Serve, tmp_path: Path) -> None:
    kept, nothing = await serve(database=f"sqlite:///{tmp_path}/pit.db"), await serve(database="none")
    for path, body in (("/v1/improve", BODY), ("/v1/chat/completions", CHAT)):
        assert_error(await post(kept, path, body | {"store": False}), 400, None, "store")
        assert_error(await post(nothing, path, body), 400, None, "idempotency-key")
    # What merely looks like it goes on to whoever reads it.
    odd = BODY | {"metadata": {"store": "false"}}
    assert (await post(kept, "/v1/improve", odd)).status_code == 200
    headers = KEY_HEADERS | {"idempotency-key": "l"}
    broken = await kept.post("/v1/improve", content=b'{"store": false', headers=headers)
    assert_error(broken, 400, "invalid_json")


async def test_without_the_database_nothing_is_executed(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pit.db"
    models, engine = engines()
    client = await serve(models, database=f"sqlite:///{file}", store_timeout_s=0.3)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await post(client, "/v1/improve", BODY)
        assert_error(refused, 503, "store_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        other.execute("ROLLBACK")
    assert engine.started == 0
    assert (await post(client, "/v1/improve", BODY)).status_code == 200


async def test_the_key_of_a_server_that_died_is_taken_over(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before its lease is over; and not by another request."""
    monkeypatch.setattr("app.idempotency.WAIT_S", 0.3)
    monkeypatch.setattr("app.idempotency.POLL_S", 0.05)
    client = await serve(database=database)
    first = (await post(client, "/v1/feedback", TEXTS)).json()["id"]
    await execute(database, "UPDATE idempotency_keys SET status = NULL, holder = 'dead'")
    waiting = await post(client, "/v1/feedback", TEXTS)
    assert_error(waiting, 409, "idempotency_in_progress", "idempotency-key")
    assert int(waiting.headers["retry-after"]) > 0
    await execute(database, f"UPDATE idempotency_keys SET lease = lease - {LEASE_S + 1}")
    other = await post(client, "/v1/feedback", TEXTS | {"other": "c"})
    assert_error(other, 422, "idempotency_key_reused")
    answers = await asyncio.gather(*(post(client, "/v1/feedback", TEXTS) for _ in range(5)))
    (taken,) = {answer.json()["id"] for answer in answers}
    assert taken != first


async def test_one_that_waits_takes_over_when_the_other_dies(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    await post(client, "/v1/feedback", TEXTS)
    await execute(database, "UPDATE idempotency_keys SET status = NULL, holder = 'dead'")
    waiting = asyncio.create_task(post(client, "/v1/feedback", TEXTS))
    await asyncio.sleep(0.1)
    await execute(database, "UPDATE idempotency_keys SET lease = 0")
    async with asyncio.timeout(3):
        assert (await waiting).status_code == 201


async def test_a_long_execution_keeps_its_lease(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that another server waits for it, however long it takes."""
    monkeypatch.setattr("app.idempotency.LEASE_S", 0.1)  # how often it is renewed, not how long it holds
    client = await serve(slow(0.006), database=database)
    caller = asyncio.create_task(post(client, "/v1/improve", SLOW_BODY))
    leases: set[float] = set()
    async with asyncio.timeout(10):
        while len(leases) < 4:
            leases |= {lease for status, lease in await execute(database, KEYS) if status is None}
    assert (await caller).status_code == 200


async def test_an_answer_is_kept_before_it_is_whole(
    serve: Serve, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies right after its answer has left one that can be had again."""
    app = start(fake_models(), database=sqlite_url)
    async with running(app):
        answers = app.state.runs.store.answers
        keep, may = answers.keep, asyncio.Event()

        async def slowly(*given: Any) -> None:
            await may.wait()
            await keep(*given)

        monkeypatch.setattr(answers, "keep", slowly)
        client = Client(app, "/v1/feedback", TEXTS, (b"idempotency-key", b"k"))
        await asyncio.sleep(0.2)
        assert client.text() == ""
        may.set()
        await client.task
        assert json.loads(client.text())["object"] == "feedback"


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    client = await serve(database=f"sqlite:///{tmp_path}/pit.db")

    async def fail(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr(client.app.state.runs.store.answers, "keep", fail)
    assert (await post(client, "/v1/improve", BODY)).status_code == 200
    assert "could not be kept" in caplog.text


async def test_a_server_that_stops_gives_its_keys_back(serve: Serve, sqlite_url: str) -> None:
    app = start(slow(), database=sqlite_url)
    async with running(app):
        client = Client(app, "/v1/improve", SLOW_BODY, (b"idempotency-key", b"k"))
        while not app.state.runs.live:
            await asyncio.sleep(0.001)
        client.gone.set()
        await client.task
    assert await execute(sqlite_url, KEYS) == []
    other = await serve(database=sqlite_url)
    assert (await post(other, "/v1/improve", SLOW_BODY)).status_code == 200


async def test_a_key_is_forgotten_after_a_day(serve: Serve, database: str) -> None:
    client = await serve(database=database)
    ids = {(await post(client, "/v1/feedback", TEXTS)).json()["id"]}
    await execute(database, f"UPDATE idempotency_keys SET created = created - {KEPT_S + 1}")
    ids.add((await post(client, "/v1/feedback", TEXTS | {"other": "c"})).json()["id"])
    assert len(ids) == 2
    upkeep = client.app.state.runs.store.upkeep
    await upkeep.turn()
    assert len(await execute(database, KEYS)) == 1
    await execute(database, f"UPDATE idempotency_keys SET created = created - {KEPT_S + 1}")
    await upkeep.turn()
    assert await execute(database, KEYS) == []


async def test_a_silent_stream_has_comments_that_are_not_kept(serve: Serve, sqlite_url: str) -> None:
    client = await serve(slow(0.05), database=sqlite_url, ping_interval_s=0.02)
    body = SLOW_BODY | {"stream": True, "max_iterations": 1}
    live = await post(client, "/v1/improve", body)
    again = await post(client, "/v1/improve", body)
    assert ": ping" in live.text
    assert ": ping" not in again.text
    assert events_of(again.text) == events_of(live.text)


async def test_the_openai_client_sends_it(serve: Serve, sqlite_url: str) -> None:
    http = await serve(database=sqlite_url)
    client = openai.AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http)
    headers = {"Idempotency-Key": "k"}

    async def ask() -> Any:
        return await client.chat.completions.create(**CHAT, extra_headers=headers)

    assert (await ask()).id == (await ask()).id
    assert await execute(sqlite_url, "SELECT count(*) FROM idempotency_keys") == [(1,)]


async def test_neither_keys_nor_bodies_stand_in_the_open(serve: Serve, sqlite_url: str, caplog: Any) -> None:
    client = await serve(database=sqlite_url)
    await post(client, "/v1/feedback", TEXTS, "canary-key")
    rows = await execute(sqlite_url, "SELECT key, fingerprint, headers FROM idempotency_keys")
    assert "canary-key" not in str(rows) + caplog.text + (await client.get("/metrics")).text
