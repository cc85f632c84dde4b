"""Limits as a client sees them: refusals that say what to do, headers, tokens that come back, /health."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.engines.base import Sampling
from app.errors import EngineFailed
from app.improve.answer import Answers
from app.improve.options import Models
from app.limits.answers import duration
from app.main import create_app
from app.security import KeyLimits
from app.settings import Settings, SettingsError, load_settings
from tests.app.conftest import Serve, running
from tests.app.fakes import FakeEngine, FakeScorer, factory_of, fake_models
from tests.app.identified import identify
from tests.app.test_telemetry import value

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
IMPROVE = {"messages": MESSAGES, "reference": "no", "max_iterations": 3, "seed": 1}
CHAT = {"model": "policy", "messages": MESSAGES, "max_tokens": 20}
SCORE = {"messages": MESSAGES, "candidate": "It is 24 .", "baseline": "no"}
COMPLETION = {"model": "policy", "prompt": ["one two", "three"], "n": 2, "max_tokens": 5}
EVERY: dict[str, dict[str, Any]] = {
    "/v1/improve": IMPROVE,
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/score": SCORE,
}


async def keyed(
    stack: AsyncExitStack, limits: Mapping[str, KeyLimits], models: Models | None = None, **settings: Any
) -> httpx.AsyncClient:
    """A server on which x-test-key names the sender."""
    app = create_app(Settings(**settings), factory_of(models or fake_models()))
    return await stack.enter_async_context(running(identify(app, limits)))


async def charged_and_used(client: httpx.AsyncClient) -> tuple[float, float]:
    """Tokens charged and not refunded, and tokens that were read and written."""
    text = (await client.get("/metrics")).text
    kept = value(text, "pit_limit_tokens_total", kind="charged") - value(
        text, "pit_limit_tokens_total", kind="refunded"
    )
    phases = [("score", "prompt")] + [
        (phase, kind)
        for phase in ("chat", "completion", "draft", "improve")
        for kind in ("prompt", "completion")
    ]
    return kept, sum(value(text, "pit_tokens_total", phase=phase, kind=kind) for phase, kind in phases)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", EVERY)
async def test_requests_per_minute_on_every_route(serve: Serve, path: str, stream: bool) -> None:
    """Two pass, the third is told when to come again; OpenAI's headers count along."""
    client = await serve(requests_per_minute=2)
    body = EVERY[path] | ({"stream": True} if stream and path != "/v1/score" else {})
    for left in ("1", "0"):
        answer = await client.post(path, json=body)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == left
        assert re.fullmatch(r"1m[\d.]+s|[\d.]+s", answer.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in answer.headers
    answer = await client.post(path, json=body)
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "may send 2 requests a minute" in error["message"]
    assert 55 <= int(answer.headers["retry-after"]) <= 61
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    text = (await client.get("/metrics")).text
    assert value(text, "pit_limited_total", reason="requests", scope="total") == 1


async def test_routes_that_generate_nothing_are_not_limited(serve: Serve) -> None:
    client = await serve(requests_per_minute=1)
    await client.post("/v1/improve", json=IMPROVE)
    for path in ("/v1/models", "/v1/improve", "/health/ready", "/metrics", "/version"):
        answer = await client.get(path)
        assert answer.status_code == (404 if path == "/v1/improve" else 200), "no runs are kept here"
        assert "x-ratelimit-limit-requests" not in answer.headers
    assert (await client.post("/v1/improve", json={})).status_code == 400, "what is refused costs nothing"
    assert (await client.post("/v1/improve", json=IMPROVE)).status_code == 429


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", EVERY)
async def test_what_was_not_used_is_refunded_to_the_token(serve: Serve, path: str, stream: bool) -> None:
    client = await serve(tokens_per_minute=100_000)
    body = EVERY[path] | ({"stream": True} if stream and path != "/v1/score" else {})
    answer = await client.post(path, json=body)
    at_first = int(answer.headers["x-ratelimit-remaining-tokens"])
    kept, used = await charged_and_used(client)
    if path == "/v1/score":  # not counted as a phase of any run
        used = client.app.state.runtime.models.scorer.tokens
    assert kept == used > 0
    assert at_first <= 100_000 - used
    window = client.app.state.limits.limiter.windows["total:tokens"]
    assert window.used == used


async def test_refunds_are_exact_however_a_run_ends(serve: Serve) -> None:
    """An engine that dies in the middle, a scorer that fails, a deadline, a token budget, a cancellation."""

    class Dying(FakeEngine):
        async def generate(self, prompt, sampling):  # type: ignore[no-untyped-def]
            async for delta in super().generate(prompt, sampling):
                yield delta
                if self.completion_tokens > 3:
                    raise EngineFailed("It died.")

    cases: list[tuple[Models, dict[str, Any], int]] = [
        (fake_models(improver=Dying()), {}, 500),
        (fake_models(scorer=FakeScorer(failure=EngineFailed("It died."))), {}, 200),
        (fake_models(scorer=FakeScorer(failure=EngineFailed("It died."))), {"scoring": "required"}, 503),
        (fake_models(improver=FakeEngine(delay_s=0.05)), {"deadline_ms": 80}, 200),
        (fake_models(policy=FakeEngine(delay_s=0.05)), {"deadline_ms": 80, "reference": None}, 504),
        (fake_models(), {"max_total_tokens": 60}, 200),
    ]
    for models, extra, status in cases:
        client = await serve(models, tokens_per_minute=100_000, database="none")
        body = {name: given for name, given in (IMPROVE | extra).items() if given is not None}
        answer = await client.post("/v1/improve", json=body)
        assert answer.status_code == status, answer.text
        kept, used = await charged_and_used(client)
        assert kept == used > 0, extra


async def test_a_run_that_is_cancelled_pays_what_it_used(serve: Serve) -> None:
    slow = FakeEngine(script=lambda _: "word " * 50, delay_s=0.02)
    client = await serve(fake_models(improver=slow), tokens_per_minute=100_000, max_concurrency=1)
    task = asyncio.create_task(client.post("/v1/improve", json=IMPROVE | {"max_tokens": 50}))
    while slow.completion_tokens < 3:
        await asyncio.sleep(0.005)
    (run_id,) = client.app.state.runs.live
    await client.post(f"/v1/improve/{run_id}/cancel")
    assert (await task).json()["stop_reason"] == "cancelled"
    kept, used = await charged_and_used(client)
    assert kept == used > 0
    assert (await client.post("/v1/score", json=SCORE)).status_code == 200, "the slot is free"


async def test_tokens_per_minute_refuse_and_say_what_is_left(serve: Serve) -> None:
    client = await serve(tokens_per_minute=60)
    ok = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 30})
    assert ok.status_code == 200
    answer = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 49})
    assert answer.status_code == 429
    used = ok.json()["usage"]["total_tokens"]
    message = answer.json()["error"]["message"]
    assert f"of which {60 - used} are left; this request may take up to 57" in message
    assert answer.headers["x-ratelimit-limit-tokens"] == "60"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(60 - used)


@pytest.mark.parametrize(
    ("path", "body", "advice"),
    [
        ("/v1/improve", IMPROVE | {"candidates": 9}, "Lower max_iterations, candidates or max_tokens"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 200}, "Lower max_tokens or n"),
        ("/v1/chat/completions", CHAT | {"model": "pit", "pit": {"candidates": 9}}, "Lower max_iterations"),
        ("/v1/completions", COMPLETION | {"n": 50}, "Lower max_tokens or n"),
        ("/v1/score", SCORE | {"candidate": [f"a {n}" for n in range(60)]}, "Send fewer candidates"),
    ],
)
async def test_what_never_fits_is_refused_at_once(
    serve: Serve, path: str, body: dict[str, Any], advice: str
) -> None:
    """400, as no retry helps; a token budget makes it fit."""
    client = await serve(tokens_per_minute=150)
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["code"] == "over_token_limit"
    assert "may use 150 a minute" in error["message"] and advice in error["message"]
    assert "retry-after" not in answer.headers
    if path == "/v1/improve":
        assert (await client.post(path, json=body | {"max_total_tokens": 150})).status_code == 200


async def test_each_key_has_its_own_limits_and_the_servers_hold_for_all() -> None:
    async with AsyncExitStack() as stack:
        limits = {"a": KeyLimits(requests_per_minute=1), "b": KeyLimits(requests_per_minute=3)}
        client = await keyed(stack, limits, requests_per_minute=5, key_requests_per_minute=9)
        statuses = []
        for key in ("a", "a", "b", "b", "b", "b", "c", "c"):
            answer = await client.post("/v1/score", json=SCORE, headers={"x-test-key": key})
            statuses.append(answer.status_code)
            shown = answer.headers["x-ratelimit-limit-requests"]
            assert shown == {"a": "1", "b": "3", "c": "9"}[key]
        assert statuses == [200, 429, 200, 200, 200, 429, 200, 429]
        assert "All requests to this server together" in answer.json()["error"]["message"]
        text = (await client.get("/metrics")).text
        assert value(text, "pit_limited_total", reason="requests", scope="key") == 2
        assert value(text, "pit_limited_total", reason="requests", scope="total") == 1


async def test_requests_wait_for_a_slot_and_are_refused_after_their_deadline() -> None:
    """A stream that waits too long has a status of its own: nothing is sent before it is let in."""
    engine = FakeEngine(script=lambda _: "word " * 10, delay_s=0.06)
    async with AsyncExitStack() as stack:
        client = await keyed(
            stack, {}, fake_models(engine), max_concurrency=1, max_queue=2, queue_timeout_s=1,
            ping_interval_s=0.4,
        )  # fmt: skip
        body = CHAT | {"stream": True}
        tasks = []
        for number in range(4):
            tasks.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
            await asyncio.sleep(0.02 * (number == 0))
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [200, 200, 503, 503]
        assert "requests wait already" in answers[3].text
        assert "none ended within 1 s" in answers[2].text
        assert answers[2].json()["error"]["code"] == "overloaded"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[2:])
        assert ": ping" not in answers[1].text, "it is silent from its admission on, not from its arrival"
        text = (await client.get("/metrics")).text
        assert value(text, "pit_admission_queue_depth") == value(text, "pit_admitted_requests") == 0
        assert value(text, "pit_admission_wait_seconds_count") == 3
        overhead = value(text, "pit_overhead_seconds_sum", route="/v1/chat/completions")
        assert overhead < 1, "to wait for a slot is no work of ours"


async def test_openais_client_reads_the_refusals(serve: Serve) -> None:
    """Its own exceptions, with our message and code; it would wait as long as Retry-After says."""
    from openai import AsyncOpenAI, BadRequestError, RateLimitError

    http = await serve(requests_per_minute=1, tokens_per_minute=500)
    client = AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)
    chat: dict[str, Any] = {"model": "policy", "messages": MESSAGES}
    raw = await client.chat.completions.with_raw_response.create(**chat, max_tokens=20)
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(RateLimitError) as limited:
        await client.chat.completions.create(**chat, max_tokens=20)
    assert limited.value.code == "rate_limit_exceeded" and limited.value.status_code == 429
    assert int(limited.value.response.headers["retry-after"]) > 50
    with pytest.raises(BadRequestError) as never:
        await client.chat.completions.create(**chat, max_tokens=200, n=5)
    assert never.value.code == "over_token_limit"


async def test_a_slot_goes_to_the_next_at_once(serve: Serve) -> None:
    client = await serve(max_concurrency=1)
    client.app.state.limits.queue.poll_s = 60
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*[client.post("/v1/improve", json=IMPROVE) for _ in range(5)])
    assert {answer.status_code for answer in answers} == {200}


async def test_a_completion_that_has_not_begun_has_used_nothing() -> None:
    """A prompt is counted with its first token's generation, not before: a client may leave in between."""
    engine = FakeEngine()
    answers = Answers(engine, [await engine.prepare([{"role": "user", "content": "Hello ."}])], Sampling(9))
    assert answers.tokens_used == 0
    answers.deltas()
    assert answers.tokens_used == 5


async def test_where_tokens_are_not_limited_nothing_is_counted_for_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single user on loopback: no counting of prompts, no header."""

    async def never(_: object, *, exact: bool) -> int:
        raise AssertionError("nobody needs it")

    monkeypatch.setattr("app.improve.cost.worst_case", never)
    client = await serve()
    answer = await client.post("/v1/improve", json=IMPROVE)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_limits_that_redis_counts(serve: Serve, redis: str) -> None:
    """Two servers, one limit; both say so in their headers."""
    clients = [await serve(limits_url=redis, requests_per_minute=3, tokens_per_minute=9000) for _ in "ab"]
    answers = [await clients[n % 2].post("/v1/improve", json=IMPROVE) for n in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert (await clients[0].get("/health/ready")).json()["degraded"] == []


def test_settings_of_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIT_LIMITS_URL", "redis://user:secret@host:1")
    assert "secret" not in repr(load_settings())
    monkeypatch.setenv("PIT_LIMITS_URL", "http://user:secret@host:1")
    with pytest.raises(SettingsError, match=r"limits_url.*write redis://") as error:
        load_settings()
    assert "secret" not in str(error.value)


def test_durations_are_openais() -> None:
    said = {0: "0s", 0.0123: "13ms", 1: "1s", 17.21: "17.3s", 60: "1m0s", 60.45: "1m0.5s"}
    assert {seconds: duration(seconds) for seconds in said} == said
