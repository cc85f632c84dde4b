"""`app.client` against the server itself, over sockets: what it sends, what it gives, and what it does when
connections break."""

import asyncio
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import client as package
from app.api.render import NAMES
from app.client import (
    AppError,
    AsyncClient,
    BadRequest,
    Client,
    Event,
    ImproveOptions,
    NoAnswer,
    NotFound,
    OutputDelta,
    RateLimited,
    RunCompleted,
    RunCreated,
    RunList,
    Unauthorized,
)
from app.client.calls import FeedbackFields, read
from app.client.events import KNOWN, Frames
from app.client.failures import failure
from app.errors import EngineFailed, ScoringUnavailable
from app.schemas import ImproveRequest
from app.schemas_feedback import Comparison, Correction, Edits, Rating, Texts
from tests.app.breaking import Breaking, breaking
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.live import server_in_a_thread

ROOT = Path(__file__).resolve().parents[2]
LONG = FakeEngine(script=lambda m: m[-2]["content"] + " more\u2028lines\x85", delay_s=0.004)
"""Adds words, among them such that Python would end a line at."""
QUESTION = "Price?"
THREE: ImproveOptions = {"max_iterations": 3, "patience": 3, "seed": 1, "max_tokens": 30}


def models(improver: FakeEngine = LONG) -> Any:
    return fake_models(improver=improver, scorer=FakeScorer(value=lambda text: float(len(text))))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = f"sqlite:///{tmp_path_factory.mktemp('client')}/pit.db"
    with server_in_a_thread(models(), database=database, store_timeout_s=20) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


@pytest.fixture
def torn(url: str) -> Iterator[Breaking]:
    with breaking(url) as proxy:
        yield proxy


def test_every_call(client: Client) -> None:
    answer = client.improve(QUESTION, "It is red.", **THREE)
    assert answer.improved and answer.response.startswith("It is red. more") and answer.stored
    assert [i.accepted for i in answer.iterations] == [True, True, True]
    one, two = client.score(QUESTION, ["It is red.", answer.response], "It is red.")
    assert one.win_probability == 0.5 < two.win_probability
    assert client.score(QUESTION, answer.response, "It is red.") == two
    said = client.feedback("comparison", run=answer.id, preferred="response", other="reference")
    assert said.pairs == 1
    free = client.feedback("texts", messages=QUESTION, preferred="Yes.", other="No.")
    assert free.run is None
    assert [one.id for one in client.list_feedback(limit=1).data] == [free.id]
    assert [one.id for one in client.list_feedback(after=free.id, since=said.created).data] == [said.id]
    (found,) = client.list_feedback(run=answer.id).data
    assert found.said == {"preferred": "response", "other": "reference"}
    pairs = [json.loads(line) for line in b"".join(client.export()).splitlines()]
    assert pairs[0]["chosen"][0]["content"] == answer.response
    page = client.runs(limit=1)
    assert [run.id for run in page.data] == [answer.id]
    stored = client.run(answer.id)
    assert stored.result == answer
    assert client.cancel(answer.id).state == "completed"  # has ended, and stays as it is
    assert client.runs(after=answer.id).data == []


async def test_every_call_async(url: str) -> None:
    async with AsyncClient(url) as client:
        answer = await client.improve([{"role": "user", "content": QUESTION}], "It is red.", **THREE)
        scores = await client.score(QUESTION, ["It is red.", answer.response], "It is red.")
        assert scores[1].win_probability > 0.5
        assert (await client.feedback("rating", run=answer.id, rating=4)).type == "rating"
        assert [one.said["rating"] for one in (await client.list_feedback(run=answer.id)).data] == [4]
        assert answer.id in [run.id for run in (await client.runs()).data]
        assert (await client.run(answer.id)).result == answer
        assert (await client.cancel(answer.id)).state == "completed"
        assert b"".join([piece async for piece in client.export(after=10**9)]) == b""
        events = [event async for event in client.events(answer.id)]
        assert events[-1] == RunCompleted(type="run.completed", improvement=answer)


def test_a_stream_is_typed_and_its_end_is_the_answer(client: Client) -> None:
    events = list(client.stream(QUESTION, "It is red.", **THREE))
    assert isinstance(events[0], RunCreated) and isinstance(events[-1], RunCompleted)
    answer = events[-1].improvement
    written = "".join(e.text for e in events if isinstance(e, OutputDelta) and e.index == 1)
    assert written == answer.iterations[0].text
    assert answer == client.run(events[0].id).result
    assert list(client.events(events[0].id)) == events
    assert list(client.events(events[0].id, after=len(events) - 2)) == events[-2:]


def _sync(url: str) -> list[Event]:
    with Client(url) as client:
        return list(client.stream(QUESTION, "It is red.", **THREE))


def _async(url: str) -> list[Event]:
    async def read() -> list[Event]:
        async with AsyncClient(url) as client:
            return [event async for event in client.stream(QUESTION, "It is red.", **THREE)]

    return asyncio.run(read())


def timeless(events: list[Event]) -> list[Any]:
    """Events without what differs between two runs of one request."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("id", "created", "ms")}
        return [strip(one) for one in value] if isinstance(value, list) else value

    return [strip(event.model_dump()) for event in events]


@pytest.mark.parametrize("read", [_sync, _async])
def test_a_stream_that_breaks_anywhere_goes_on_where_it_broke(
    url: str, torn: Breaking, read: Callable[[str], list[Event]]
) -> None:
    """Before the first event, in the middle of one, again and again: each event once, one run."""
    whole = timeless(read(url))
    torn.allowed = [0, 900, 700, 1200, 333]
    assert timeless(read(torn.url)) == whole
    assert not torn.allowed
    posts = [line for line in torn.requests if line.startswith("POST")]
    assert len(posts) == 2 and len(torn.requests) == 6, torn.requests
    with Client(url) as client:
        again = client.runs(limit=2).data
    assert torn.requests[-1] == f"GET /v1/improve/{again[0].id}/events"
    assert [run.state for run in again] == ["completed", "completed"]


def test_a_run_that_is_not_stored_and_has_ended_is_replayed_by_its_key(tmp_path: Path) -> None:
    """There is nothing to resume then, but the answer is kept for the key: each event comes once even so."""
    fast = models(FakeEngine(script=lambda m: m[-2]["content"] + " more"))
    with server_in_a_thread(fast, database=f"sqlite:///{tmp_path}/pit.db", store=False) as url:
        whole = timeless(_sync(url))
        pause = time.sleep

        def until_it_has_ended(seconds: float) -> None:
            while "} 2.0" not in "".join(re.findall(r"pit_runs_total\{.*", httpx.get(f"{url}/metrics").text)):
                pause(0.05)
            pause(seconds)

        with breaking(url) as torn, pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.client.clients.time.sleep", until_it_has_ended)
            torn.allowed = [900]
            assert timeless(_sync(torn.url)) == whole
            assert [line.split()[0] for line in torn.requests] == ["POST", "GET", "POST"]


def test_it_gives_up_when_no_server_is_left(url: str, torn: Breaking) -> None:
    """And says so; a server that was never there is not tried again."""
    torn.allowed = [900, *[0] * 20]
    with Client(torn.url) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: None)
        with pytest.raises(NoAnswer, match="broke"):
            list(client.stream(QUESTION, "It is red.", **THREE))
    started = time.monotonic()
    with Client("http://127.0.0.1:9") as nowhere, pytest.raises(NoAnswer, match="no server answers at"):
        list(nowhere.stream(QUESTION))
    assert time.monotonic() - started < 5


def test_what_is_no_address_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with Client("nonsense") as client, pytest.raises(NoAnswer, match="not an address"):
        list(client.stream(QUESTION, "It is red."))
    assert pauses == []


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_a_stream_that_is_left_cancels_its_run(url: str, how: str) -> None:
    many: ImproveOptions = {"max_iterations": 20, "patience": 20, "max_tokens": 150}
    if how == "sync":
        with Client(url) as client:
            events = client.stream(QUESTION, "It is red.", **many)
            run = await asyncio.to_thread(lambda: next(events))
            await asyncio.to_thread(events.close)
            state = (await asyncio.to_thread(client.run, run.id)).state  # type: ignore[union-attr]
    else:
        async with AsyncClient(url) as client_:
            async with aclosing(client_.stream(QUESTION, "It is red.", **many)) as opened:
                first = await anext(opened)
            assert isinstance(first, RunCreated)
            state = (await client_.run(first.id)).state
    assert state == "cancelled"


def test_where_nothing_is_kept_it_streams_without_a_key() -> None:
    with server_in_a_thread(models()) as url, breaking(url) as torn, Client(torn.url) as client:
        assert isinstance(list(client.stream(QUESTION, "No.", **THREE))[-1], RunCompleted)
        assert isinstance(list(client.stream(QUESTION, "No.", store=False))[-1], RunCompleted)
        assert len(torn.requests) == 3  # the first with a key, which is refused
        with pytest.raises(NotFound) as caught:
            client.runs()
        assert caught.value.code == "run_not_found"


def test_errors_are_those_of_the_server(client: Client) -> None:
    with pytest.raises(BadRequest) as bad:
        client.improve(QUESTION, " ")
    assert (bad.value.status, bad.value.param) == (400, "reference")
    assert bad.value.request_id and bad.value.request_id.startswith("req_")
    with pytest.raises(NotFound) as gone:
        client.run("imp_0?limit=1")
    assert gone.value.code == "run_not_found"
    with pytest.raises(BadRequest):
        list(client.stream(QUESTION, " "))
    with pytest.raises(NoAnswer, match="is not an address"):
        Client("nonsense").runs()
    for status in (200, 502):  # a proxy's page, or another server
        with pytest.raises(AppError) as foreign:
            read(httpx.Response(status, content=b"<html>"), RunList)
        assert foreign.value.code == "not_from_pit_serve"


def test_keys_limits_and_failures() -> None:
    """401; 429 with when to come again; a run that fails in the middle."""
    key = f"ci {secrets.token_hex(32)} requests_per_minute=1"
    failing = FakeEngine(failure=EngineFailed("It broke."))
    with server_in_a_thread(models(failing), api_keys=key) as url:
        with Client(url) as client, pytest.raises(Unauthorized) as who:
            client.improve(QUESTION, "No.")
        assert (who.value.status, who.value.code) == (401, "invalid_api_key")
        with Client(url, key.split()[1]) as client:
            with pytest.raises(EngineFailed, match="It broke"):
                list(client.stream(QUESTION, "No.", store=False))
            with pytest.raises(RateLimited) as limited:
                client.improve(QUESTION, "No.")
    assert limited.value.status == 429
    assert limited.value.retry_after and 0 < limited.value.retry_after <= 61


def test_an_error_in_a_stream_is_found_by_its_type_and_code() -> None:
    body = ScoringUnavailable("Down.").body()
    assert type(failure(json.dumps(body))) is ScoringUnavailable
    assert type(failure(json.dumps(body | {"error": body["error"] | {"code": "new"}}), 503)).status == 503


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_come_whole_however_the_bytes_are_cut(size: int) -> None:
    stream = 'id: 1\nevent: a\ndata: {"text":"x\u2028y: z"}\n\n: ping\n\ndata: [DONE]\n\n'.encode()
    frames, found = Frames(), []
    for start in range(0, len(stream), size):
        found += list(frames.feed(stream[start : start + size]))
    assert [(f.number, f.name, f.data) for f in found] == [
        (1, "a", '{"text":"x\u2028y: z"}'),
        (0, "", "[DONE]"),
    ]


def test_it_knows_all_that_the_server_takes_and_says() -> None:
    assert set(ImproveRequest.model_fields) - {"messages", "reference", "stream"} == set(
        ImproveOptions.__annotations__
    )
    said = {name for kind in (Comparison, Edits, Rating, Correction, Texts) for name in kind.model_fields}
    assert said - {"type"} == set(FeedbackFields.__annotations__)
    assert {*NAMES.values(), "run.completed"} == KNOWN
    assert set(package.__all__) <= set(dir(package))


def test_both_clients_have_the_same_calls() -> None:
    calls = [{n for n in vars(kind) if not n.startswith("_")} for kind in (Client, AsyncClient)]
    assert calls[0] == calls[1]


def test_it_imports_no_server_and_no_engine() -> None:
    heavy = ("fastapi", "starlette", "sqlalchemy", "torch", "transformers", "vllm", "typer", "aiohttp")
    code = f"import sys, app.client; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
