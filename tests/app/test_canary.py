"""No part of a request's content is in logs, metrics or spans: canary strings wherever a client can put text,
logs at debug level, exceptions with the content in their text."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from app.engines.base import Delta, Message, Prompt, Sampling, Scores
from app.errors import EngineFailed, ScoringUnavailable
from app.logs import configure_logging
from app.settings import Settings
from app.tracing import OpenTelemetryTracer
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.faults.figures import Figure, say

CANARY = "canary7f3a"
MESSAGES = [{"role": "system", "content": f"{CANARY} a"}, {"role": "user", "content": f"{CANARY} b"}]
IMPROVE = {
    "messages": MESSAGES,
    "reference": f"{CANARY} c",
    "strategy": "self_refine",
    "rubric": f"{CANARY} d",
    "metadata": {f"{CANARY}e": f"{CANARY} f"},
    "stop": [f"{CANARY} g"],
    "candidates": 2,
}
HEADERS = {
    "authorization": f"Bearer {CANARY}",
    "user-agent": CANARY,
    "x-request-id": f"{CANARY} with a space",
    "traceparent": CANARY,
    "tracestate": CANARY,
    CANARY: CANARY,
}


def talkative() -> FakeEngine:
    return FakeEngine(script=lambda _: f"{CANARY} h and more")


class BrokenEngine(FakeEngine):
    """Fails in the way of an engine that has a bug, after one token or at once."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        yield Delta(CANARY, 1)
        raise ValueError(f"cannot handle {CANARY}")


class BrokenPrepare(FakeEngine):
    async def prepare(self, messages: Any, **_: Any) -> Prompt:
        raise KeyError(f"{CANARY} {messages[0]}")


class BrokenScorer(FakeScorer):
    async def score(self, comparisons: Any) -> Scores:
        raise RuntimeError(f"cannot score {comparisons[0]} {CANARY}")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """What `pit serve` would write at debug level."""
    stream, root = StringIO(), logging.getLogger()
    before = root.handlers, root.level
    names = ("app", "uvicorn", "vllm", "app.access")
    levels = {name: logging.getLogger(name).level for name in names}
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    configure_logging(Settings(log_level="debug", log_format=request.param))
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield stream.getvalue
    root.handlers, root.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


MODELS: dict[str, Any] = {
    "well": lambda: fake_models(talkative(), talkative()),
    "engine fails": lambda: fake_models(BrokenEngine(), BrokenEngine()),
    "prompt fails": lambda: fake_models(BrokenPrepare(), BrokenPrepare()),
    "scorer fails": lambda: fake_models(talkative(), talkative(), BrokenScorer()),
    "said failure": lambda: fake_models(
        FakeEngine(failure=EngineFailed("It died.")),
        talkative(),
        FakeScorer(failure=ScoringUnavailable("It is away.")),
    ),
}


@pytest.mark.parametrize("lines", ["text", "json"], indirect=True)
@pytest.mark.parametrize("models", MODELS)
async def test_no_canary_in_logs_metrics_and_spans(
    serve: Serve, lines: Callable[[], str], models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    client = await serve(MODELS[models]())
    client.app.state.telemetry.tracer = OpenTelemetryTracer(Settings(), SimpleSpanProcessor(exporter))
    statuses = []
    for stream in (False, True):
        chat = {"messages": MESSAGES, "stream": stream, "user": CANARY, "metadata": {CANARY: CANARY}}
        bodies: list[tuple[str, Any]] = [
            ("/v1/improve", IMPROVE | {"stream": stream}),
            ("/v1/improve", {"messages": MESSAGES, "stream": stream}),
            ("/v1/chat/completions", chat | {"model": "policy"}),
            ("/v1/chat/completions", chat | {"model": "pit"}),
            ("/v1/chat/completions", chat | {"model": CANARY}),
            ("/v1/score", {"messages": MESSAGES, "candidate": CANARY, "baseline": f"{CANARY} x"}),
            ("/v1/improve", {CANARY: CANARY}),
            (f"/{CANARY}?{CANARY}={CANARY}", {}),
            (f"/v1/improve/{CANARY}", {}),
        ]
        for path, body in bodies:
            statuses.append((await client.post(path, json=body, headers=HEADERS)).status_code)
        statuses.append((await client.post("/v1/improve", content=CANARY, headers=HEADERS)).status_code)
        statuses.append((await client.request(CANARY.upper(), "/v1/improve", headers=HEADERS)).status_code)
    await asyncio.sleep(0)
    metrics = (await client.get("/metrics")).text
    spans = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert 404 in statuses and 400 in statuses
    assert (500 in statuses) == (models != "well"), statuses
    written = lines()
    assert written.count("/v1/improve") >= 8
    assert "pit.run.id" in spans or models == "prompt fails"
    hits = 0
    for text in (written, metrics, spans):
        hits += text.lower().count(CANARY)
        if CANARY in text.lower():
            print(text[max(0, text.lower().find(CANARY) - 300) :][:600])
    say(
        Figure(
            14,
            "canaries in prompts, options, headers, addresses and exceptions",
            f"{hits} hits in logs at debug level, metrics and spans of {len(statuses)} requests, with and"
            " without failing models",
            "0 hits",
            hits == 0,
        )
    )


@pytest.mark.parametrize("lines", ["text"], indirect=True)
async def test_the_canary_would_be_found(lines: Callable[[], str]) -> None:
    """The test above would hold emptily if nothing were logged, or if what is logged were lost."""
    message: Message = {"role": "user", "content": CANARY}
    logging.getLogger("app.anything").debug("a prompt: %s", message)
    assert CANARY in lines()
    logging.getLogger("another.library").debug("a prompt: %s", message)
    assert lines().count(CANARY) == 1
