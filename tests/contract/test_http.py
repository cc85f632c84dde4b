"""The server over real vLLM and a real socket: the `openai` client, the improvement loop, a client that
leaves."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.engines.vllm import VllmEngine
from app.replay import difference

pytestmark = pytest.mark.engine
MESSAGES: list[Any] = [{"role": "user", "content": "What is the price of the lamp?"}]


@pytest.fixture
async def http(url: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


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


async def test_responses_are_written_in_the_form_that_they_must_keep(http: httpx.AsyncClient) -> None:
    """A random model has never seen JSON: the grammar makes every candidate valid."""
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    body = {"messages": MESSAGES, "reference": "No.", "candidates": 4, "seed": 1, "max_tokens": 60}
    keep = {"keep": {"json_schema": schema}}
    answer = (await http.post("/v1/improve", json=body | keep)).raise_for_status().json()
    for iteration in answer["iterations"]:
        assert json.loads(iteration["text"])["ok"] in (True, False)
        assert iteration["violations"] == []


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


async def test_a_stored_run_replays_identically(http: httpx.AsyncClient, real_engine: VllmEngine) -> None:
    """A seed was drawn, sampling is warm, other runs were in the batch: the same run again, and no other
    model."""
    body = {"messages": MESSAGES, "candidates": 3, "patience": 2, "max_tokens": 12, "temperature": 1.0}
    answers = await asyncio.gather(*(http.post("/v1/improve", json=body) for _ in range(4)))
    for answer in answers:
        run = (await http.get(f"/v1/improve/{answer.json()['id']}")).json()
        again = (await http.post("/v1/improve", json=run["request"])).json()
        found = difference(run["result"], again)
        assert found["identical"], found
        assert found["models"] == []
        assert again["identities"].keys() == again["models"].keys()


async def test_a_run_is_cancelled_in_the_engine_and_its_caller_gets_its_best(
    http: httpx.AsyncClient, real_engine: VllmEngine
) -> None:
    body = {"messages": MESSAGES, "reference": "No.", "max_tokens": 200, "candidates": 8, "stream": True}
    async with http.stream("POST", "/v1/improve", json=body) as response:
        lines = response.aiter_lines()
        created = [await anext(lines) for _ in range(3)][2]
        run_id = json.loads(created.removeprefix("data: "))["id"]
        cancelled = (await http.post(f"/v1/improve/{run_id}/cancel")).json()
        rest = [line async for line in lines if line.startswith("data: ")]
    answer = json.loads(rest[-1].removeprefix("data: "))["improvement"]
    assert (answer["stop_reason"], answer["response"], answer["stored"]) == ("cancelled", "No.", True)
    assert (cancelled["state"], cancelled["result"]) == ("cancelled", answer)
    assert not real_engine._llm.get_num_unfinished_requests()


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
