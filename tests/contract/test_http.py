"""The server over real vLLM and a real socket: the `openai` client, the improvement loop, a client that
leaves."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from app.engines.vllm import VllmEngine
from app.main import create_app
from app.runtime import Served
from app.settings import Settings

pytestmark = pytest.mark.engine
MESSAGES: list[Any] = [{"role": "user", "content": "What is the price of the lamp?"}]


@pytest.fixture(scope="session")
async def url(served: Served) -> AsyncGenerator[str, None]:
    """The session's engine behind HTTP."""

    async def close() -> None:
        """The engine goes on: other tests use it."""

    async def factory(_: Settings) -> Served:
        return Served(served.models, close, served.engine_version, served.engine_metrics)

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(), factory), log_level="error"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
async def http(url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
async def client(url: str) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("model", ["policy", "pit"])
async def test_the_openai_client_chats(client: openai.AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, seed=1)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, seed=1)
    assert again.choices[0].message.content == answer.choices[0].message.content
    text, usage = "", None
    stream = await client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=8,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        usage = chunk.usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == answer.usage.completion_tokens


async def test_the_openai_client_lists_models_and_sees_errors(client: openai.AsyncOpenAI, url: str) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["policy", "pit"]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "word " * 400}]
        )
    assert caught.value.code == "context_length_exceeded"
    extra = {"pit": {"max_iterations": 1, "strategy": "self_refine"}}
    answer = await client.chat.completions.create(
        model="pit", messages=MESSAGES, max_tokens=8, extra_body=extra
    )
    assert answer.object == "chat.completion"

    def synchronous() -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as plain:
            found = plain.chat.completions.create(model="policy", messages=MESSAGES, max_tokens=4)
            return found.id

    assert (await asyncio.to_thread(synchronous)).startswith("chatcmpl-")


@pytest.mark.parametrize("strategy", ["pit", "self_refine", "best_of_n"])
async def test_every_strategy_improves_or_keeps_the_reference(http: httpx.AsyncClient, strategy: str) -> None:
    """Never worse, by the gap reward's own word."""
    body = {
        "messages": MESSAGES,
        "reference": "No.",
        "strategy": strategy,
        "candidates": 4,
        "seed": 5,
        "max_tokens": 12,
    }
    answer = (await http.post("/v1/improve", json=body)).raise_for_status().json()
    assert answer["scoring"] == "gap"
    accepted = [i for i in answer["iterations"] if i["accepted"]]
    assert all(i["win_probability"] >= 0.5 for i in accepted)
    assert answer["response"] == (accepted[-1]["text"] if accepted else "No.")
    score = {"messages": MESSAGES, "candidate": answer["response"], "baseline": "No."}
    if accepted:
        first = (await http.post("/v1/score", json=score | {"candidate": accepted[0]["text"]})).json()
        assert first["win_probability"] == pytest.approx(accepted[0]["win_probability"], abs=1e-4)
    again = (await http.post("/v1/improve", json=body)).json()
    assert [i["text"] for i in again["iterations"]] == [i["text"] for i in answer["iterations"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/improve", "/v1/chat/completions"])
async def test_a_client_that_leaves_stops_its_generation(
    http: httpx.AsyncClient, real_engine: VllmEngine, url: str, stream: bool, path: str
) -> None:
    """Ten clients close their sockets in the middle: within a second the engine has nothing to do."""
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 200, "temperature": 1.0, "stream": stream}
    body |= {"reference": "No.", "candidates": 8} if path == "/v1/improve" else {"model": "policy"}
    leaving = []
    for _ in range(10):
        other = httpx.AsyncClient(base_url=url, timeout=30)
        leaving.append((other, asyncio.create_task(other.post(path, json=body))))
    async with asyncio.timeout(10):
        while not real_engine._llm.get_num_unfinished_requests():
            await asyncio.sleep(0.001)
    left = time.monotonic()
    for other, task in leaving:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await other.aclose()
    while real_engine._llm.get_num_unfinished_requests():
        await asyncio.sleep(0.01)
        assert time.monotonic() - left < 1, "the engine still generates for clients that have left"
    assert (await http.get("/health/ready")).status_code == 200


async def test_many_runs_side_by_side_do_not_mix(http: httpx.AsyncClient) -> None:
    """Thirty runs at once, each with the texts that it has alone."""
    bodies = [
        {"messages": [{"role": "user", "content": f"Question {n}"}], "seed": n, "max_tokens": 10}
        for n in range(30)
    ]
    answers = await asyncio.gather(*(http.post("/v1/improve", json=body) for body in bodies))
    for n in (0, 11, 29):
        alone = (await http.post("/v1/improve", json=bodies[n])).json()
        assert answers[n].json()["reference"] == alone["reference"]
        assert answers[n].json()["response"] == alone["response"]


async def test_metrics_after_all_this(http: httpx.AsyncClient, checkpoints: dict[str, Path]) -> None:
    text = (await http.get("/metrics")).text
    assert "pit_requests_in_flight 1.0" in text
    assert 'pit_tokens_total{kind="completion",phase="improve"}' in text
    assert re.search(r'pit_first_token_seconds_count{model="both",phase="improve"} [1-9]', text)
    # vLLM's own beside them; the two agree on how many generations there were.
    assert re.search(r'vllm:generation_tokens_total{engine="0",model_name="both"} [1-9]', text)
    assert re.search(r'vllm:prefix_cache_hits_total{engine="0",model_name="both"} [1-9]', text)
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "no family twice"
    assert (await http.get("/version")).json()["engine"] == "0.32.0"
