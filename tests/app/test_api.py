"""The HTTP interface over fakes: answers, streams, and one error shape on every route and status."""

import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.errors import CheckpointError, EngineFailed
from app.main import create_app
from app.runtime import Served
from app.settings import Settings
from tests.app.conftest import Serve, running
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

CANARY = "zq-canary-7431"
MESSAGES = [{"role": "user", "content": f"What is the price {CANARY} ?"}]
BODY = {"messages": MESSAGES, "reference": "no", "seed": 3}


def growing(messages: Any) -> str:
    return str(messages[-2]["content"]) + " more"


def longer_is_better() -> Any:
    return fake_models(improver=FakeEngine(script=growing), scorer=FakeScorer(value=lambda t: float(len(t))))


def assert_error(response: httpx.Response, status: int, code: str | None, param: str | None = None) -> None:
    """The shape that every error has."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["message"].endswith(".")
    if code:
        assert error["code"] == code
    if param:
        assert error["param"] == param
    assert re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", response.headers["x-request-id"])
    assert CANARY not in response.text


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            assert json.loads(fields["data"])["type"] == fields["event"]
            found.append(json.loads(fields["data"]) | {"sse_id": int(fields["id"])})
    return found


async def test_improve_answers_with_the_documented_fields(serve: Serve) -> None:
    client = await serve(longer_is_better())
    answer = (
        await client.post("/v1/improve", json=BODY | {"max_iterations": 2, "metadata": {"a": "b"}})
    ).json()
    assert answer["object"] == "improvement"
    assert answer["response"] == "no more more"
    assert (answer["improved"], answer["reference"], answer["stop_reason"]) == (True, "no", "max_iterations")
    assert (answer["scoring"], answer["metadata"]) == ("gap", {"a": "b"})
    assert answer["models"] == {"improver": "fake", "gap_reward": "fake-gap"}
    assert set(answer["iterations"][0]) == {
        "index", "text", "gap", "win_probability", "accepted", "finish_reason", "candidate", "usage", "ms",
            "score_tokens", "violations", "edits",
    }  # fmt: skip
    parts = [answer["usage"][name] for name in ("draft", "improve", "score")]
    assert answer["usage"]["total_tokens"] == sum(p["prompt_tokens"] + p["completion_tokens"] for p in parts)


async def test_the_stream_ends_with_the_unary_answer(serve: Serve) -> None:
    """Unary and streamed are renderings of one loop: the same request and seed, the same result."""
    client = await serve(fake_models())
    body = BODY | {"candidates": 3, "patience": 3}
    unary = (await client.post("/v1/improve", json=body)).json()
    response = await client.post("/v1/improve", json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [e["sse_id"] for e in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run.created"
    final = events[-1]["improvement"]
    for volatile in ("id", "created", "ms"):
        final.pop(volatile), unary.pop(volatile)
    for iteration in (*final["iterations"], *unary["iterations"]):
        iteration.pop("ms")
    assert final == unary
    assert {e["type"] for e in events} >= {
        "iteration.started",
        "output.delta",
        "candidate.scored",
        "run.completed",
    }


async def test_a_run_that_fails_ends_the_stream_with_run_failed(serve: Serve) -> None:
    client = await serve(
        fake_models(improver=FakeEngine(failure=EngineFailed("The engine process has ended.")))
    )
    events = events_of((await client.post("/v1/improve", json=BODY | {"stream": True})).text)
    assert events[-1]["type"] == "run.failed"
    assert events[-1]["error"]["type"] == "engine_error"


async def test_an_unexpected_exception_is_a_500_without_its_text(serve: Serve, caplog: Any) -> None:
    """Neither the client nor the log sees the exception's text: it may hold a prompt."""

    def crash(messages: Any) -> str:
        raise RuntimeError(f"secret {messages}")

    client = await serve(fake_models(improver=FakeEngine(script=crash)))
    assert_error(await client.post("/v1/improve", json=BODY), 500, "internal_error")
    streamed = events_of((await client.post("/v1/improve", json=BODY | {"stream": True})).text)
    assert streamed[-1]["type"] == "run.failed"
    assert "secret" not in json.dumps(streamed)
    assert "RuntimeError" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"foo": 1}, "foo", "unknown_field"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name", "unknown_field"),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", None),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, None),
        ({"reference": ""}, "reference", None),
        ({"reference": " \n"}, "reference", None),
        ({"reference": 7}, "reference", None),
        ({"max_iterations": 0}, "max_iterations", None),
        ({"max_iterations": 21}, "max_iterations", None),
        ({"candidates": 17}, "candidates", None),
        ({"temperature": -1}, "temperature", None),
        ({"temperature": "NaN"}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"seed": -1}, "seed", None),
        ({"strategy": "magic"}, "strategy", None),
        ({"scoring": "maybe"}, "scoring", None),
        ({"store": True}, "store", None),
        ({"max_total_tokens": 3, "reference": None}, "max_total_tokens", None),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages", "context_length_exceeded"),
        ({"reference": "word " * 300}, "reference", "context_length_exceeded"),
        ({"strategy": "best_of_n", "scoring": "off"}, "scoring", None),
        ({"candidates": 2, "scoring": "off"}, "candidates", None),
    ],
)
async def test_bad_input_is_a_400_that_names_the_field(
    serve: Serve, change: dict[str, Any], param: str | None, code: str | None
) -> None:
    client = await serve()
    for stream in (False, True):
        response = await client.post("/v1/improve", content=json.dumps(BODY | change | {"stream": stream}))
        # Without the content type the body is not read as JSON: say so.
        assert_error(response, 400, "invalid_json")
        headers = {"content-type": "application/json"}
        body = json.dumps(BODY | change | {"stream": stream})
        assert_error(await client.post("/v1/improve", content=body, headers=headers), 400, code, param)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "7", "null", '"x"', "[" * 100_000, '{"a": NaN}', "\x00", '{"messages": 1e999}', "\xff"],
)
async def test_a_body_that_is_no_request_is_a_400(serve: Serve, body: str) -> None:
    client = await serve()
    for path in ("/v1/improve", "/v1/chat/completions", "/v1/score"):
        response = await client.post(
            path, content=body.encode("latin-1"), headers={"content-type": "application/json"}
        )
        assert_error(response, 400, None)


async def test_every_route_answers_404_405_and_413_in_the_same_shape(serve: Serve) -> None:
    client = await serve(max_body_bytes=2000)
    assert_error(await client.get("/nothing/here"), 404, "not_found")
    assert_error(await client.get("/v1/improve/"), 404, "not_found")
    for path in ("/v1/improve", "/v1/chat/completions", "/v1/score"):
        refused = await client.put(path)
        assert_error(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == ("GET, POST" if path == "/v1/improve" else "POST")
        assert_error(await client.post(path, content=b"x" * 3000), 413, "request_too_large")

        async def endless() -> Any:
            for _ in range(1000):
                yield b"x" * 1000

        assert_error(await client.post(path, content=endless()), 413, "request_too_large")
    for path in ("/v1/models", "/health", "/health/live", "/health/ready", "/version", "/metrics"):
        assert_error(await client.delete(path), 405, "method_not_allowed")
        assert (await client.get(path)).status_code == 200


async def test_the_request_id_is_kept_when_it_is_sane(serve: Serve) -> None:
    client = await serve()
    assert (await client.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await client.get("/health", headers={"x-request-id": "a b"})).headers["x-request-id"]
    assert made.startswith("req_")


async def test_score_is_the_gate_s_probability(serve: Serve) -> None:
    client = await serve(longer_is_better())
    body = {"messages": MESSAGES, "candidate": "long answer", "baseline": "short"}
    answer = (await client.post("/v1/score", json=body)).json()
    assert answer["gap"] == pytest.approx(6.0)
    assert answer["win_probability"] == pytest.approx(0.999994, abs=1e-6)
    same = (await client.post("/v1/score", json=body | {"candidate": "short"})).json()
    assert (same["gap"], same["win_probability"]) == (0.0, 0.5)
    several = (await client.post("/v1/score", json=body | {"candidate": [body["candidate"], "short"]})).json()
    assert several == {"object": "list", "data": [answer, same]}
    none = await client.post("/v1/score", json=body | {"candidate": []})
    assert_error(none, 400, "invalid_value")
    without = await serve(replace(longer_is_better(), scorer=None))
    assert_error(await without.post("/v1/score", json=body), 503, "scoring_unavailable")
    assert_error(
        await without.post("/v1/improve", json=BODY | {"scoring": "required"}), 503, "scoring_unavailable"
    )


async def test_a_server_that_cannot_start_says_why_and_stays_unready() -> None:
    async def broken(_: Settings) -> Served:
        raise CheckpointError("--policy DIR does not exist.")

    async with running(create_app(Settings(), broken)) as client:
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["reasons"] == ["--policy DIR does not exist."]
        refused = await client.post("/v1/improve", json=BODY)
        assert_error(refused, 503, "not_ready")
        assert refused.headers["retry-after"] == "5"


async def test_readiness_is_lost_when_an_engine_dies(serve: Serve) -> None:
    models = fake_models()
    client = await serve(models)
    assert (await client.get("/health/ready")).json() == {"status": "ok", "reasons": [], "degraded": []}
    assert models.policy is not None
    await models.policy.close()
    response = await client.get("/health/ready")
    assert response.status_code == 503
    assert "policy" in response.json()["reasons"][0]


async def test_metrics_count_what_happened_and_hold_no_text(serve: Serve) -> None:
    client = await serve(longer_is_better())
    await client.post("/v1/improve", json=BODY | {"max_iterations": 2})
    await client.get("/" + CANARY)
    text = (await client.get("/metrics")).text
    assert 'pit_iterations_total{outcome="accepted",strategy="pit"} 2.0' in text
    assert 'pit_runs_total{scoring="gap",stop_reason="max_iterations",strategy="pit"} 1.0' in text
    assert 'pit_requests_total{method="POST",route="/v1/improve",status="200"} 1.0' in text
    assert 'pit_win_probability_count{strategy="pit"} 2.0' in text
    assert 'pit_tokens_total{kind="completion",phase="improve"} 5.0' in text
    assert CANARY not in text
