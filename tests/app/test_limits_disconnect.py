"""A client that goes away gives back its slot and its tokens, in whichever phase, with either limiter."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI

from app.improve.options import Models
from app.limits.fallback import FallbackLimiter
from app.limits.local import LocalLimiter
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import running
from tests.app.fakes import FakeEngine, FakeScorer, factory_of, fake_models
from tests.app.test_disconnect import Client
from tests.app.test_telemetry import value

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
IMPROVE = ("/v1/improve", {"messages": MESSAGES, "reference": "no", "max_tokens": 30})
PITCHAT = ("/v1/chat/completions", {"model": "pit", "messages": MESSAGES, "max_tokens": 30})
CHAT = ("/v1/chat/completions", {"model": "policy", "messages": MESSAGES, "max_tokens": 30})
SCORE = ("/v1/score", {"messages": MESSAGES, "candidate": "It is 24 .", "baseline": "no"})
STREAM = {"stream": True}


def wordy(delay_s: float) -> FakeEngine:
    return FakeEngine(script=lambda _: "word " * 30, delay_s=delay_s)


def slow() -> Models:
    """Fifty words a second and no end of scoring."""
    return fake_models(wordy(0.02), wordy(0.02), FakeScorer(delay_s=30))


def silent() -> Models:
    return fake_models(wordy(30), wordy(30))


def quick() -> Models:
    # Not drawn: a draw that is the reference again would not be scored.
    return fake_models(improver=FakeEngine(script=lambda _: "It is 24 ."), scorer=FakeScorer(delay_s=30))


def engines_run(models: Models) -> bool:
    return any(engine.running for engine in engines(models))


def words_came(models: Models) -> bool:
    return sum(engine.completion_tokens for engine in engines(models)) >= 3


def scores(models: Models) -> bool:
    assert isinstance(models.scorer, FakeScorer)
    return models.scorer.calls > 0


def engines(models: Models) -> list[FakeEngine]:
    return [engine for engine in (models.policy, models.improver) if isinstance(engine, FakeEngine)]


PHASES: dict[str, tuple[tuple[str, dict[str, Any]], Callable[[], Models], Callable[[Models], bool]]] = {
    "before the first byte": ((CHAT[0], CHAT[1] | STREAM), silent, engines_run),
    "before the first token": ((IMPROVE[0], IMPROVE[1] | STREAM), silent, engines_run),
    "in the middle of a stream": ((CHAT[0], CHAT[1] | STREAM), slow, words_came),
    "in the middle of a run's stream": ((IMPROVE[0], IMPROVE[1] | STREAM), slow, words_came),
    "while pit drafts": ((PITCHAT[0], PITCHAT[1] | STREAM), slow, words_came),
    "while a run is scored": ((IMPROVE[0], IMPROVE[1] | STREAM), quick, scores),
    "while a unary run is scored": (IMPROVE, quick, scores),
    "while /v1/score scores": (SCORE, quick, scores),
    "unary run": (IMPROVE, slow, words_came),
    "unary chat": (CHAT, slow, words_came),
    "unary pit": (PITCHAT, slow, words_came),
}


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Where limits are counted."""
    return None if request.param == "memory" else request.getfixturevalue("redis")


def start(models: Models, url: str | None, **settings: Any) -> FastAPI:
    given = {"tokens_per_minute": 100_000, "max_concurrency": 1, **settings}
    return create_app(Settings(limits_url=url, **given), factory_of(models))


async def counted(app: FastAPI) -> tuple[int, int]:
    """Tokens in the minute's window, and slots that are taken."""
    limiter = app.state.limits.limiter
    if isinstance(limiter, LocalLimiter):
        window = limiter.windows.get("total:tokens")
        return (window.used if window else 0), limiter.taken["total:slots"]
    assert isinstance(limiter, FallbackLimiter) and limiter.problem is None
    redis = limiter.shared.line.redis
    tokens = sum(map(int, await redis.hvals("{pit}:total:tokens")))
    return tokens, await redis.zcard("{pit}:total:slots")


async def until(condition: Callable[[], Any], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


async def given_back(app: FastAPI, http: Any) -> None:
    """Within a second no slot is taken, and what is counted is what was used."""
    deadline = asyncio.get_running_loop().time() + 1
    while True:
        text = (await http.get("/metrics")).text
        kept = value(text, "pit_limit_tokens_total", kind="charged")
        kept -= value(text, "pit_limit_tokens_total", kind="refunded")
        used = sum(
            value(text, "pit_tokens_total", phase=phase, kind=kind)
            for phase in ("chat", "draft", "improve", "score")
            for kind in ("prompt", "completion")
        )
        found = await counted(app)
        if found == (used, 0) and kept == used:
            assert value(text, "pit_admitted_requests") == 0
            return
        assert asyncio.get_running_loop().time() < deadline, (found, kept, used)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("phase", PHASES)
async def test_slot_and_tokens_come_back(phase: str, url: str | None) -> None:
    (path, body), make, reached = PHASES[phase]
    models = make()
    app = start(models, url)
    async with running(app) as http:
        client = Client(app, path, body)
        await until(lambda: reached(models))
        _, taken = await counted(app)
        assert taken == 1
        client.gone.set()
        async with asyncio.timeout(1):
            await client.task
        await given_back(app, http)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_queue_has_taken_nothing(url: str | None, stream: bool) -> None:
    models = slow()
    app = start(models, url)
    async with running(app) as http:
        first = Client(app, *IMPROVE)
        await until(lambda: engines_run(models))
        before = await counted(app)
        path, body = IMPROVE
        waiting = Client(app, path, body | {"stream": stream})
        queue = app.state.limits.queue
        await until(lambda: queue.waiting)
        assert waiting.sent == []
        waiting.gone.set()
        async with asyncio.timeout(1):
            await waiting.task
        assert queue.waiting == 0
        assert await counted(app) == before
        first.gone.set()
        await first.task
        await given_back(app, http)


async def test_clients_that_leave_at_any_moment_leak_nothing(url: str | None) -> None:
    """Forty clients of two slots, each gone a little later than the one before: into the admission itself,
    into the queue, into the work."""
    engine = FakeEngine(script=lambda _: "word " * 5, delay_s=0.002)
    app = start(fake_models(engine), url, max_concurrency=2)
    async with running(app) as http:
        clients = []
        for number in range(40):
            client = Client(app, CHAT[0], CHAT[1] | {"stream": bool(number % 2)})
            clients.append(client)
            asyncio.get_running_loop().call_later(0.0007 * (number % 20), client.gone.set)
            await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            await asyncio.gather(*[client.task for client in clients])
        await given_back(app, http)
