"""The harness itself: does it count what happened? The measurements are no tests; `make bench` runs them."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bench import Load
from tests.load.figures import Bar, Result, ratios, spread
from tests.load.gateway import KINDS, Contestant, cost, upstream
from tests.load.processes import LoadError, Server, server
from tests.load.quality import ITERATIONS, Points
from tests.load.upstream import FALLBACK, parse_chat, question_of, rating, render_chat
from tests.ports import free_port
from training.helpdesk import gold_score
from training.synthetic import make_pairs

PROMPT = make_pairs(1, 3)[0].prompt[0]["content"]
GOOD, BAD = "Have a nice day!", "Just read the label."
CHAT = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with (
        ExitStack() as stack,
        upstream(stack, tmp_path_factory.mktemp("up"), "--length", "16", "--delay-ms", "5") as found,
    ):
        yield found


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_tokens_and_cpu_time_are_counted(
    mock: Server, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mock upstream as its own contestant: every request arrives, and costs something."""
    monkeypatch.setattr("tests.load.gateway.REQUESTS", 24)
    httpx.post(f"{mock.url}/stats")
    row = await cost(Contestant(mock, "mock", None), kind)
    seen = httpx.post(f"{mock.url}/stats").json()
    assert seen["generations"] == 24 + 8
    assert seen["completion_tokens"] == 16 * (24 + 8)
    assert 0 < row["CPU ms"] < 100
    assert row["p50 ms"] >= 5
    assert 5 < mock.rss_mib() < 500 and 5 < mock.memory_mib() < 500


def test_a_server_that_fails_fails_the_measurement(mock: Server, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="404"):
        asyncio.run(cost_of_nothing(mock))
    command = [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"]
    with (
        pytest.raises(LoadError, match=r"(?s)ended with status 3.*no such thing"),
        server("broken", command, port=free_port(), log=tmp_path / "log"),
    ):
        pass


async def cost_of_nothing(mock: Server) -> None:
    from tests.load.inside import drive

    await drive(mock.url + "/nothing", Load(1, 1, 5, 5, "mock"), "chat")


def test_a_client_that_leaves_the_mock_is_noticed(mock: Server) -> None:
    httpx.post(f"{mock.url}/stats")
    body = {"messages": CHAT, "stream": True}
    with (
        httpx.Client(base_url=mock.url) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{mock.url}/v1/chat/completions", json={"messages": CHAT}, timeout=0.003)
    time.sleep(0.1)
    assert httpx.get(f"{mock.url}/stats").json().get("left", 0) >= 1


def test_the_mock_answers_like_vllm(mock: Server) -> None:
    """Chats and completions, n, usage at the end of a stream, ids, scores of chats and of ids."""
    with httpx.Client(base_url=mock.url) as http:
        answer = http.post("/v1/chat/completions", json={"messages": CHAT, "n": 3}).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 48
        body = {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}}
        lines = [line for line in http.post("/v1/chat/completions", json=body).text.split("\n\n") if line]
        chunks = [json.loads(line[6:]) for line in lines[:-1]]
        assert lines[-1] == "data: [DONE]"
        assert len(chunks) == 1 + 16 + 1
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == 16
        ids = http.post("/tokenize", json={"messages": CHAT}).json()["tokens"]
        text = http.post("/v1/completions", json={"prompt": ids}).json()["choices"][0]["text"]
        assert len(text.split()) == 16
        chats = [[*CHAT, {"role": "assistant", "content": one}] for one in (GOOD, BAD)]
        scored = http.post("/classify", json={"input": [render_chat(chat) for chat in chats]}).json()
        gold = [gold_score(PROMPT, one) for one in (GOOD, BAD)]
        assert [one["probs"] for one in scored["data"]] == [[gold[0]], [gold[1]]]
        one = http.post("/classify", json={"messages": chats[1], "use_activation": False}).json()
        assert one["data"][0]["probs"] == [gold[1]]


def test_the_mock_rates_by_the_gold_score() -> None:
    assert rating(PROMPT, BAD) < rating(PROMPT, GOOD) < 10
    assert question_of([{"role": "user", "content": f"User: {PROMPT}\nMore."}]) == PROMPT
    assert question_of([{"role": "user", "content": "Hello"}]) == FALLBACK
    assert parse_chat(render_chat(CHAT)) == CHAT


def test_medians_quartiles_and_bars() -> None:
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.low, found.median, found.high) == (2, 3, 4)
    assert ratios(spread([1.0, 2.0]), spread([2.0, 8.0])).rounds == (0.5, 0.25)
    assert Bar("a", 1.0, 1.0).met and not Bar("a", 1.1, 1.0).met
    assert Bar("a", 1.0, 1.0, True).met and not Bar("a", 0.9, 1.0, True).met


def test_a_result_is_written_with_its_verdicts(tmp_path: Path) -> None:
    result = Result("x", {"a": {"b": spread([1.0])}}, [Bar("a", 2.0, 1.0)])
    content = json.loads(result.write(tmp_path).read_text())
    assert content["bars"][0]["met"] is False
    assert content["rows"]["a"]["b"]["median"] == 1


def test_a_stopped_run_costs_nothing_more() -> None:
    """The gate rejects the second iteration: the third point is the second's."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    iterations = [
        {"text": GOOD, "accepted": True, "usage": usage, "score_tokens": 100, "ms": 2.0},
        {"text": BAD, "accepted": False, "usage": usage, "score_tokens": 50, "ms": 3.0},
    ]
    points = Points()
    points.add("pit", PROMPT, {"reference": BAD, "iterations": iterations})
    found = [points.found["pit", number].mean() for number in range(1, ITERATIONS + 1)]
    assert [(one["tokens"], one["ms"]) for one in found] == [(115, 2), (180, 5), (180, 5)]
    assert {one["gold"] for one in found} == {gold_score(PROMPT, GOOD)}
