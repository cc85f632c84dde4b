"""A run that is cancelled, by request or because its client left, ends with its best, and is stored so."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.api.chat import start_chat
from app.api.improve import Checkpoint
from app.improve.loop import ImprovementRun
from app.improve.progress import Progress
from app.schemas import ImproveRequest
from app.schemas_openai import ChatCompletionRequest
from tests.app.conftest import Serve, running
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.test_api import events_of
from tests.app.test_disconnect import Client, start
from tests.app.test_store import BODY, MESSAGES, SLOW_BODY, slow, until_running


@pytest.mark.parametrize("stream", [False, True])
async def test_the_caller_of_a_cancelled_run_gets_its_best(serve: Serve, database: str, stream: bool) -> None:
    client = await serve(slow(), database=database)
    caller = asyncio.create_task(client.post("/v1/improve", json=SLOW_BODY | {"stream": stream}))
    live = client.app.state.runs.live[await until_running(client)]
    async with asyncio.timeout(20):
        while not live.run.iterations:  # the first is accepted; cancel in the middle of the second
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        cancelled = await client.post(f"/v1/improve/{live.run.id}/cancel")
        response = await caller
    answer = events_of(response.text)[-1]["improvement"] if stream else response.json()
    assert answer["stop_reason"] == "cancelled"
    assert answer["response"] == "no" + " word" * 30
    assert [i["accepted"] for i in answer["iterations"]] == [True, False]
    assert answer["iterations"][1]["finish_reason"] == "cancelled"
    assert 0 < len(answer["iterations"][1]["text"].split()) < 61
    assert cancelled.status_code == 200
    run = cancelled.json()
    assert (run["state"], run["result"]) == ("cancelled", answer)
    stored = (await client.get(f"/v1/improve/{live.run.id}")).json()
    assert stored == run
    (listed,) = (await client.get("/v1/improve")).json()["data"]
    assert (listed["state"], listed["stop_reason"], listed["iterations"]) == ("cancelled", "cancelled", 2)
    assert 'stop_reason="cancelled"' in (await client.get("/metrics")).text


async def test_cancelling_a_run_that_has_ended_changes_nothing(serve: Serve, database: str) -> None:
    """As OpenAI's responses: the answer is the run as it ended, however often it is cancelled."""
    client = await serve(fake_models(), database=database)
    answer = (await client.post("/v1/improve", json=BODY)).json()
    for _ in range(2):
        cancelled = await client.post(f"/v1/improve/{answer['id']}/cancel")
        assert cancelled.status_code == 200
        assert (cancelled.json()["state"], cancelled.json()["result"]) == ("completed", answer)


async def test_cancel_while_drafting_and_while_scoring(serve: Serve, database: str) -> None:
    """The text of a cancelled draft is what was written of it; a candidate that was not scored is not
    accepted."""
    client = await serve(slow(), database=database)
    caller = asyncio.create_task(client.post("/v1/improve", json={"messages": MESSAGES, "max_tokens": 30}))
    run_id = await until_running(client)
    await asyncio.sleep(0.2)
    await client.post(f"/v1/improve/{run_id}/cancel")
    answer = (await caller).json()
    assert (answer["stop_reason"], answer["iterations"], answer["improved"]) == ("cancelled", [], False)
    assert answer["response"].startswith("draft draft")
    assert len(answer["response"].split()) < 30

    scorer = FakeScorer(delay_s=30)
    client = await serve(fake_models(scorer=scorer), database="none")
    caller = asyncio.create_task(client.post("/v1/improve", json=BODY))
    run_id = await until_running(client)
    async with asyncio.timeout(2):
        while not scorer.calls:
            await asyncio.sleep(0.001)
        await client.post(f"/v1/improve/{run_id}/cancel")
        answer = (await caller).json()
    assert (answer["stop_reason"], answer["response"]) == ("cancelled", "no")
    assert answer["iterations"][0]["accepted"] is False


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_answers_with_its_best_when_the_server_stops(serve: Serve, stream: bool) -> None:
    """In the middle of an iteration the text before it, which is whole; in the middle of the draft what is
    written, which is cut; before the first word the error that sends the client to another server."""
    drafted = [*MESSAGES, {"role": "assistant", "content": "no"}]
    cases: list[tuple[Any, Callable[[Any], bool], str, str]] = [
        (drafted, lambda m: m.improver.started == 2, "no" + " word" * 30, "stop"),
        (MESSAGES, lambda m: m.policy.completion_tokens > 3, "draft", "length"),
        (MESSAGES, lambda m: m.policy.running > 0, "", "error"),
    ]
    for messages, is_there, content, reason in cases:
        models: Any = slow(0.02 if content else 30)
        client = await serve(models, database="none")
        caller = asyncio.create_task(client.post("/v1/chat/completions", json=chat(messages, stream)))
        async with asyncio.timeout(20):
            while not is_there(models):
                await asyncio.sleep(0.005)
            client.app.state.runtime.lifecycle.cut()
            answer = await caller
        if reason == "error":
            error = json.loads(data_of(answer.text)[-1] if stream else answer.text)["error"]
            assert (error["code"], answer.status_code) == ("not_ready", 200 if stream else 503)
            continue
        if stream:
            choices = [json.loads(line)["choices"][0] for line in data_of(answer.text)]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
        else:
            choices = answer.json()["choices"]
            text = choices[0]["message"]["content"]
        assert choices[-1]["finish_reason"] == reason
        assert text == content if reason == "stop" else text.startswith(content) and len(text.split()) < 30
        assert not client.app.state.runtime.lifecycle._cuts


def chat(messages: Any, stream: bool = False) -> dict[str, Any]:
    body = {"model": "pit", "messages": messages, "stream": stream, "max_tokens": 100}
    return body | {"pit": {"max_iterations": 2}, "seed": 3}


def data_of(stream: str) -> list[str]:
    """The chunks of a stream of chat, without [DONE]."""
    found = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return found[:-1]


async def test_a_batch_s_chat_is_not_cut(serve: Serve) -> None:
    """Its item is given back and goes on from its checkpoint: a part of an answer is not its result."""
    models: Any = slow(0.002)
    state = (await serve(models, database="none")).app.state

    async def save(_: Progress) -> None:
        state.runtime.lifecycle.cut()

    body = ChatCompletionRequest.model_validate(chat(MESSAGES))
    found = await start_chat(body, state.runtime, state.telemetry, Checkpoint(None, save))
    answer = json.loads(bytes((await found.answer()).body))
    assert answer["choices"][0]["message"]["content"].count("word") == 60


async def test_a_cancelled_run_frees_the_engine(serve: Serve) -> None:
    engine = FakeEngine(script=lambda _: "word " * 30, delay_s=0.02)
    client = await serve(fake_models(improver=engine), database="none")
    caller = asyncio.create_task(client.post("/v1/improve", json=BODY | {"max_tokens": 30, "candidates": 8}))
    run_id = await until_running(client)
    async with asyncio.timeout(2):
        while engine.running < 8:
            await asyncio.sleep(0.001)
        await client.post(f"/v1/improve/{run_id}/cancel")
    assert (engine.running, engine.aborted) == (0, 8)
    await caller


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_run(database: str, stream: bool) -> None:
    """The stored run says so, and whoever else follows it sees its end."""
    app = start(slow(), database=database)
    async with running(app) as http:
        client = Client(app, "/v1/improve", SLOW_BODY | {"stream": stream})
        run_id = await until_running(http)
        follower = asyncio.create_task(http.get(f"/v1/improve/{run_id}/events"))
        await asyncio.sleep(0.2)
        client.gone.set()
        async with asyncio.timeout(2):
            await client.task
        run: Any = (await http.get(f"/v1/improve/{run_id}")).json()
        assert (run["state"], run["result"]["stop_reason"]) == ("cancelled", "cancelled")
        assert events_of((await follower).text)[-1]["improvement"] == run["result"]


async def test_a_follower_that_goes_away_cancels_nothing(serve: Serve, database: str) -> None:
    client = await serve(slow(delay_s=0.01), database=database)
    caller = asyncio.create_task(client.post("/v1/improve", json=SLOW_BODY))
    path = f"/v1/improve/{await until_running(client)}/events"
    follower = asyncio.create_task(client.get(path))
    await asyncio.sleep(0.1)
    follower.cancel()
    assert (await caller).json()["stop_reason"] == "max_iterations"


async def test_a_reader_that_stops_stops_its_run(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow reader does not take does not pile up; the run can be cancelled all the same."""
    monkeypatch.setattr("app.runs.MAX_LEAD", 5)
    client = await serve(slow(delay_s=0), database="none")
    app = client.app
    runs = app.state.runs
    run = await ImprovementRun.start(app.state.runtime.models, ImproveRequest(**SLOW_BODY).options())
    live = runs.take(run, ImproveRequest(**SLOW_BODY))
    stream = live.stream()
    for _ in range(3):
        await anext(stream)
    await asyncio.sleep(0.3)
    assert live._shown <= 3 + 5 + 1
    await live.cancel()
    assert live.record.state == "cancelled"
    rest = [frame async for frame in stream]
    assert b'"stop_reason":"cancelled"' in rest[-1]


async def test_another_server_of_the_same_database_follows_and_cancels(serve: Serve, database: str) -> None:
    """Behind a load balancer a request for a run reaches any server."""
    one = await serve(slow(delay_s=0.05), database=database)
    other = await serve(fake_models(), database=database)
    caller = asyncio.create_task(one.post("/v1/improve", json=SLOW_BODY | {"stream": True}))
    run_id = await until_running(one)
    async with asyncio.timeout(15):
        while (await other.get(f"/v1/improve/{run_id}")).status_code == 404:
            await asyncio.sleep(0.05)
        follower = asyncio.create_task(other.get(f"/v1/improve/{run_id}/events"))
        cancelled = (await other.post(f"/v1/improve/{run_id}/cancel")).json()
        assert cancelled["state"] == "cancelled"
        live = (await caller).text
        assert events_of(live)[-1]["improvement"] == cancelled["result"]
        assert (await follower).text == live
