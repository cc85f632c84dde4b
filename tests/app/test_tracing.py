"""Spans: a run, its iterations, what is generated and scored in them; under the caller's trace."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Prompt, Sampling
from app.errors import EngineFailed
from app.observe import trace_headers
from app.settings import Settings, SettingsError
from app.tracing import OpenTelemetryTracer, check_tracing
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "user", "content": "What is the price ?"}]
TRACE, CALLER = "ab" * 16, "cd" * 8
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
Spans = Callable[[], list[Any]]


@pytest.fixture
async def traced(serve: Serve) -> Any:
    """`client, spans = await traced(models)`: a server whose spans stay in memory."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    async def start(models: Any = None) -> tuple[Any, Spans]:
        exporter = InMemorySpanExporter()
        client = await serve(models)
        tracer = OpenTelemetryTracer(Settings(), SimpleSpanProcessor(exporter))
        client.app.state.telemetry.tracer = tracer
        return client, lambda: list(exporter.get_finished_spans())

    return start


def parent_of(span: Any, spans: list[Any]) -> str | None:
    """The name of a span's parent."""
    names = {one.context.span_id: one.name for one in spans}
    return names.get(span.parent.span_id) if span.parent else None


async def test_a_run_is_a_tree_under_the_callers_span(traced: Any) -> None:
    """Request, run, draft, two iterations with three candidates and a score each."""
    policy = FakeEngine(script=lambda _: "one", model_id="fake-policy")
    texts = iter(["four", "five", "six", "seven", "eight", "nine", "ten"])
    improver = FakeEngine(script=lambda _: f"{next(texts)} {'x' * len(seen)}", model_id="fake-improver")
    seen = improver.prompts
    client, spans = await traced(fake_models(policy, improver, FakeScorer(value=len)))
    body = {"messages": MESSAGES, "max_iterations": 2, "candidates": 3, "seed": 1}
    answer = (await client.post("/v1/improve", json=body, headers=HEADERS)).json()
    found = spans()
    assert {span.context.trace_id for span in found} == {int(TRACE, 16)}
    (request,) = (span for span in found if span.kind.name == "SERVER")
    assert request.parent.span_id == int(CALLER, 16)
    assert request.attributes["http.route"] == "/v1/improve"
    tree = sorted((span.name, parent_of(span, found)) for span in found if span is not request)
    iterations = len(answer["iterations"])
    assert iterations == 2
    assert tree == sorted(
        [("invoke_workflow pit", "POST"), ("chat fake-policy", "invoke_workflow pit")]
        + [("iteration", "invoke_workflow pit")] * iterations
        + [("chat fake-improver", "iteration")] * (3 * iterations)
        + [("score fake-gap", "iteration")] * iterations
    )
    by_name = {span.name: span.attributes for span in found}
    run, draft = by_name["invoke_workflow pit"], by_name["chat fake-policy"]
    assert (run["pit.run.id"], run["pit.stop_reason"]) == (answer["id"], answer["stop_reason"])
    assert run["gen_ai.usage.output_tokens"] == sum(
        answer["usage"][phase]["completion_tokens"] for phase in ("draft", "improve")
    )
    assert draft["gen_ai.operation.name"] == "chat"
    assert draft["gen_ai.usage.output_tokens"] == answer["usage"]["draft"]["completion_tokens"]
    assert draft["gen_ai.usage.input_tokens"] == answer["usage"]["draft"]["prompt_tokens"]
    assert draft["gen_ai.response.finish_reasons"] == ("stop",)
    assert (draft["pit.phase"], by_name["chat fake-improver"]["pit.phase"]) == ("draft", "improve")
    gaps = [span.attributes["pit.gap"] for span in found if span.name == "iteration"]
    assert gaps == [iteration["gap"] for iteration in answer["iterations"]]


async def test_failures_are_marked_with_their_code_alone(traced: Any) -> None:
    client, spans = await traced(fake_models(improver=FakeEngine(failure=EngineFailed("A message."))))
    await client.post("/v1/improve", json={"messages": MESSAGES, "reference": "no"})
    found = {span.name: span for span in spans()}
    kinds = {"chat fake": "engine_failed", "invoke_workflow pit": "engine_failed", "POST": "500"}
    for name, kind in kinds.items():
        assert found[name].attributes["error.type"] == kind
        assert (found[name].status.status_code.name, found[name].status.description) == ("ERROR", None)
        assert not found[name].events
    assert found["iteration"].attributes["error.type"] == "engine_failed"


@pytest.mark.parametrize("tracing", [True, False])
async def test_an_upstream_is_called_under_the_generations_span(
    traced: Any, serve: Serve, tracing: bool
) -> None:
    """With traces off the caller's own context is passed on."""
    sent: list[dict[str, str]] = []

    class Upstream(FakeEngine):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
            sent.append(trace_headers())
            async for delta in super().generate(prompt, sampling):
                yield delta

    models, spans = fake_models(Upstream(model_id="far")), None
    if tracing:
        client, spans = await traced(models)
    else:
        client = await serve(models)
    body = {"model": "policy", "messages": MESSAGES}
    await client.post("/v1/chat/completions", json=body, headers=HEADERS)
    expected = CALLER
    if spans:
        (span,) = (one for one in spans() if one.name == "chat far")
        expected = f"{span.context.span_id:016x}"
    assert sent == [{"traceparent": f"00-{TRACE}-{expected}-01"}]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[str]]]:
    """An OTLP collector on the loopback: its URL, and what was posted to it."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.path)
            received.append(str(len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


async def test_spans_arrive_at_a_collector(serve: Serve, collector: tuple[str, list[str]]) -> None:
    """From the setting to the wire; what is left goes when the server stops."""
    import asyncio

    url, received = collector
    client = await serve(otlp_endpoint=url)
    await client.post("/v1/improve", json={"messages": MESSAGES, "reference": "no"})
    tracer = client.app.state.telemetry.tracer
    await asyncio.to_thread(tracer.close)
    assert received[0] == "/v1/traces"
    assert int(received[1]) > 100


def test_settings_that_cannot_be_traced_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="must be a URL"):
        check_tracing(Settings(otlp_endpoint="collector:4318"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pit-serve\[otel\]"):
        check_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"))
    check_tracing(Settings())


def test_nothing_of_opentelemetry_is_imported_when_it_is_off() -> None:
    code = (
        "import asyncio, json, sys\n"
        "from tests.app.conftest import running\n"
        "from tests.app.fakes import factory_of, fake_models\n"
        "from app.main import create_app\n"
        "from app.settings import Settings\n"
        "async def main():\n"
        "    async with running(create_app(Settings(), factory_of(fake_models()))) as client:\n"
        "        body = {'messages': [{'role': 'user', 'content': 'hi'}], 'reference': 'no'}\n"
        "        assert (await client.post('/v1/improve', json=body)).status_code == 200\n"
        "asyncio.run(main())\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
