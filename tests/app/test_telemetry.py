"""Metrics, logs and the overhead header: what they count, and that the page about them is true."""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import aclosing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.engines.base import Comparison, Prompt, Sampling
from app.errors import EngineFailed
from app.logs import JsonFormatter, TextFormatter, access, quiet_loop_errors
from app.observe import RequestState, current, observed, trace_context, trace_headers
from app.telemetry import Telemetry
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "user", "content": "What is the price ?"}]
IMPROVE = {"messages": MESSAGES, "reference": "no", "max_iterations": 2, "seed": 1}


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples of an exposition by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return values(text).get((name, tuple(sorted(labels.items()))), 0.0)


def test_the_page_lists_every_metric_with_its_labels() -> None:
    page = (ROOT / "docs/telemetry.md").read_text()
    rows = re.findall(r"^\| `(pit_\w+)` \| (\w+) \| ([a-z_, ]*) ?\|", page, re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    registered = {}
    for collector in Telemetry().registry._collector_to_names:
        labels = tuple(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            if family.name.startswith("pit_"):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                registered[name] = (family.type, labels)
    assert listed == registered


@pytest.fixture
def log() -> Any:
    """The lines of our loggers, as JSON, at debug level."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("app")
    before = logger.level, access.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    access.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    access.setLevel(before[1])


async def test_an_improvement_is_counted_and_logged(
    serve: Serve, log: Callable[[], list[dict[str, Any]]]
) -> None:
    """One line with ids, times and tokens; latency by model and phase; nothing waits at the end."""
    client = await serve()
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    answer = await client.post("/v1/improve", json=IMPROVE, headers={"traceparent": parent})
    body = answer.json()
    text = (await client.get("/metrics")).text
    scored = len(body["iterations"])
    assert value(text, "pit_generation_seconds_count", model="fake-improver", phase="improve") == scored
    assert value(text, "pit_first_token_seconds_count", model="fake-improver", phase="improve") == scored
    assert value(text, "pit_scorer_seconds_count", model="fake-gap") == scored
    assert value(text, "pit_gap_count", strategy="pit") == scored
    assert value(text, "pit_overhead_seconds_count", route="/v1/improve") == 1
    for name in ("pit_queue_depth", "pit_generations_in_flight"):
        assert value(text, name, model="fake-improver") == 0
    assert value(text, "pit_ready") == 1
    assert value(text, "pit_event_loop_cpu_seconds_total") > 0
    (line,) = log()
    assert line["message"] == "request"
    assert (line["route"], line["method"], line["status"]) == ("/v1/improve", "POST", 200)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["run_id"], line["stop_reason"]) == (body["id"], body["stop_reason"])
    assert line["completion_tokens"] == body["usage"]["improve"]["completion_tokens"]
    assert line["prompt_tokens"] == body["usage"]["improve"]["prompt_tokens"]
    assert line["trace_id"] == "ab" * 16
    assert 0 < line["overhead_ms"] <= line["ms"]


async def test_overhead_is_what_engine_and_scorer_did_not_take(serve: Serve) -> None:
    """200 ms in the engine and 100 in the scorer are not ours, though three candidates run side by side."""
    slow = FakeEngine(script=lambda _: "one two", delay_s=0.1)
    client = await serve(fake_models(improver=slow, scorer=FakeScorer(delay_s=0.1)))
    answer = await client.post("/v1/improve", json=IMPROVE | {"candidates": 3, "max_iterations": 1})
    assert answer.json()["ms"] > 290
    assert 0 < float(answer.headers["x-pit-overhead-ms"]) < 150
    text = (await client.get("/metrics")).text
    assert value(text, "pit_overhead_seconds_sum", route="/v1/improve") < 0.15
    assert value(text, "pit_request_seconds_sum", route="/v1/improve") > 0.29


async def test_a_stream_says_when_its_first_event_left(serve: Serve) -> None:
    """For chat the first event comes at once; the header holds what came before it."""
    client = await serve()
    for path, extra in (("/v1/improve", {"reference": "no"}), ("/v1/chat/completions", {"model": "policy"})):
        answer = await client.post(path, json={"messages": MESSAGES, "stream": True} | extra)
        assert float(answer.headers["x-pit-overhead-ms"]) > 0
        text = (await client.get("/metrics")).text
        assert value(text, "pit_time_to_first_event_seconds_count", route=path) == 1
    assert value(text, "pit_generation_seconds_count", model="fake-policy", phase="chat") == 1
    await client.post("/v1/completions", json={"model": "policy", "prompt": "What is the price ?"})
    text = (await client.get("/metrics")).text
    for phase in ("chat", "completion"):
        assert value(text, "pit_generation_seconds_count", model="fake-policy", phase=phase) == 1
        assert value(text, "pit_tokens_total", phase=phase, kind="completion") > 0
    assert value(text, "pit_time_to_first_event_seconds_count", route="/metrics") == 0


async def test_errors_have_a_line_with_their_code_and_health_checks_have_none(
    serve: Serve, log: Callable[[], list[dict[str, Any]]]
) -> None:
    client = await serve(fake_models(improver=FakeEngine(failure=EngineFailed("It died."))))
    for path in ("/health", "/health/live", "/metrics"):
        await client.get(path)
    assert log() == []
    await client.post("/v1/improve", json=IMPROVE)
    await client.request("BREW", "/coffee")
    lines = log()
    assert [(line["status"], line["error"]) for line in lines] == [(500, "engine_failed"), (404, "not_found")]
    assert (lines[1]["route"], lines[1]["method"]) == ("unmatched", "other")
    text = (await client.get("/metrics")).text
    assert value(text, "pit_model_errors_total", model="fake", code="engine_failed") == 1
    assert value(text, "pit_requests_total", route="unmatched", method="other", status="404") == 1


async def test_a_generation_that_is_closed_early_leaves_the_gauges_at_zero() -> None:
    """Before its first token, and after it."""
    telemetry = Telemetry()
    engine = FakeEngine(script=lambda _: "word " * 9, delay_s=0.01)
    models = observed(fake_models(policy=engine, improver=engine), telemetry)
    assert models.policy is models.improver, "one engine stays one object"
    assert models.policy is not None
    prompt = await models.policy.prepare([{"role": "user", "content": "hello"}])
    waiting, state = asyncio.Event(), RequestState()
    token = current.set(state)
    for deltas in (0, 1):

        async def read(wanted: int = deltas) -> None:
            assert models.policy is not None
            async with aclosing(models.policy.generate(prompt, Sampling(max_tokens=9))) as stream:
                for _ in range(wanted):
                    await anext(stream)
                waiting.set()
                await anext(stream)

        waiting.clear()
        task = asyncio.create_task(read())
        await waiting.wait()
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    current.reset(token)
    text = telemetry.render().decode()
    assert value(text, "pit_queue_depth", model="fake") == 0
    assert value(text, "pit_generations_in_flight", model="fake") == 0
    assert value(text, "pit_generation_seconds_count", model="fake", phase="chat") == 2
    assert value(text, "pit_first_token_seconds_count", model="fake", phase="chat") == 1
    assert state._pauses == 0


async def test_queue_depth_counts_what_waits() -> None:
    telemetry = Telemetry()
    policy, scorer = FakeEngine(delay_s=0.05, model_id="p"), FakeScorer(delay_s=0.05)
    models = observed(fake_models(policy, scorer=scorer), telemetry)
    assert models.policy is not None and models.scorer is not None

    async def generate() -> None:
        assert models.policy is not None
        async for _ in models.policy.generate(Prompt([1], 1), Sampling(max_tokens=1)):
            pass

    tasks = [asyncio.create_task(generate()) for _ in range(3)]
    tasks.append(asyncio.create_task(models.scorer.score([Comparison((), "a", "b")])))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    text = telemetry.render().decode()
    assert value(text, "pit_queue_depth", model="p") == 3
    assert value(text, "pit_queue_depth", model="fake-gap") == 1
    await asyncio.gather(*tasks)
    assert value(telemetry.render().decode(), "pit_queue_depth", model="p") == 0


def test_a_trace_context_is_passed_on_only_where_it_is_well_formed() -> None:
    good = f"00-{'ab' * 16}-{'cd' * 8}-01"
    headers = {"traceparent": good, "tracestate": "a=b"}
    assert trace_context(headers) == headers
    for bad in ("", "nonsense", good.upper(), f"ff{good[2:]}", f"00-{'0' * 32}-{'cd' * 8}-01", good + "\n"):
        assert trace_context({"traceparent": bad, "tracestate": "a=b"}) == {}
    token = current.set(RequestState("r", {"traceparent": good}))
    assert trace_headers() == {"traceparent": good}
    current.reset(token)
    assert trace_headers() == {}


def test_lines_are_one_object_each_and_exceptions_have_no_text() -> None:
    """A logger's own fields, an exception whose text is a secret, and the event loop's complaint."""
    stream = StringIO()
    logger = logging.getLogger("app.test_lines")
    logger.propagate = False
    for formatter in (JsonFormatter(), TextFormatter()):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    try:
        raise ValueError("-".join(("a", "secret")))
    except ValueError as error:
        caught = error
        logger.exception("it failed")
        handlers = logging.getLogger("app").handlers
        logging.getLogger("app").handlers = logger.handlers
        loop = asyncio.new_event_loop()
        quiet_loop_errors(loop, {"message": str(error), "exception": error})
        loop.close()
        logging.getLogger("app").handlers = handlers
    text = stream.getvalue()
    assert str(caught) not in text
    assert text.count("test_telemetry.py") == 4
    first = json.loads(text.splitlines()[0])
    assert (first["level"], first["logger"], first["message"]) == ("error", "app.test_lines", "it failed")
    assert first["exception"].endswith("ValueError")
