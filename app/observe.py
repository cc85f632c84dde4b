"""What is measured of one request, and the wrappers around engines and scorer that measure it.

The core knows nothing of this: it gets models that look like its own. What belongs to a request travels in a
context variable, which every task that the request starts inherits.
"""

import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from app.engines.base import Comparison, Delta, Engine, Prompt, Sampling, Scorer, Scores
from app.errors import AppError
from app.improve.options import Models

if TYPE_CHECKING:
    from app.security import Identity
    from app.telemetry import Telemetry

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
Attributes = Mapping[str, Any]


class Span(Protocol):
    """A span of a trace, open. No attribute holds any part of a prompt or a response."""

    def set(self, attributes: Attributes) -> None: ...

    def end(self, error: str | None = None) -> None:
        """`error`: what kind of failure ended it; a code or a class name, never a message."""

    def headers(self) -> dict[str, str]:
        """W3C trace context headers that make what follows a child of this span."""


class Tracer(Protocol):
    """Starts spans. app/tracing.py has the real one."""

    def start(
        self,
        name: str,
        attributes: Attributes,
        *,
        parent: Span | None = None,
        remote: Mapping[str, str] | None = None,
        kind: str = "internal",
    ) -> Span:
        """`remote`: the W3C headers of whoever asked, for a span without a parent here."""


class RequestState:
    """One request. `overhead_s` is its time so far without the time in which it awaited a slot, an engine,
    the scorer or its client: what this server's own code took, and its waiting for other requests' code."""

    __slots__ = (
        "_paused_s", "_pauses", "_since", "completion_tokens", "error", "headers", "identity", "phase",
        "prompt_tokens", "request_id", "run_id", "span", "started", "stop_reason", "trace",
    )  # fmt: skip

    def __init__(self, request_id: str = "", trace: dict[str, str] | None = None) -> None:
        self.request_id = request_id
        self.trace = trace or {}
        """The W3C headers that came with the request."""
        self.span: Span | None = None
        """The innermost open span."""
        self.phase = "chat"
        """What is generated now: chat, completion, draft or improve."""
        self.identity: Identity | None = None
        """Who sent it; None where that is not known yet, or nobody asks."""
        self.headers: list[tuple[bytes, bytes]] = []
        """What its answer says beside what it says by itself."""
        self.run_id: str | None = None
        self.stop_reason: str | None = None
        self.error: str | None = None
        self.prompt_tokens = self.completion_tokens = 0
        self._pauses, self._paused_s, self._since = 0, 0.0, 0.0
        self.started = time.perf_counter()

    def begin(self) -> None:
        """The request is here: from now on time counts as overhead."""
        self.started = time.perf_counter()

    def pause(self) -> None:
        """Something else works for this request. Several at a time count once."""
        if not self._pauses:
            self._since = time.perf_counter()
        self._pauses += 1

    def resume(self) -> None:
        """It has answered."""
        self._pauses -= 1
        if not self._pauses:
            self._paused_s += time.perf_counter() - self._since

    @property
    def overhead_s(self) -> float:
        now = time.perf_counter()
        paused = self._paused_s + (now - self._since if self._pauses else 0.0)
        return now - self.started - paused


current: ContextVar[RequestState | None] = ContextVar("pit_request", default=None)
_calling: ContextVar[Span | None] = ContextVar("pit_calling", default=None)


def trace_headers() -> dict[str, str]:
    """The W3C headers for a call to an upstream: of the generation's span, or those that came with the
    request where nothing is traced here."""
    if span := _calling.get():
        return span.headers()
    state = current.get()
    return state.trace if state else {}


def trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace context of a request's headers, by the W3C's rules: nothing of it where it is malformed."""
    parent = headers.get("traceparent")
    if parent is None or not TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    return {"traceparent": parent} | ({"tracestate": state} if TRACESTATE.fullmatch(state) else {})


def observed(models: Models, telemetry: "Telemetry") -> Models:
    """The same models, measured. A model that does two things stays one object."""
    engines: dict[int, Engine] = {}
    for engine in (models.policy, models.improver):
        if engine is not None:
            engines[id(engine)] = cast(Engine, ObservedEngine(engine, telemetry))
    return replace(
        models,
        policy=engines[id(models.policy)] if models.policy else None,
        improver=engines[id(models.improver)] if models.improver else None,
        scorer=cast(Scorer, ObservedScorer(models.scorer, telemetry)) if models.scorer else None,
    )


class ObservedEngine:
    """An `Engine` whose generations are counted, timed and traced. What it does not define is the engine's
    own."""

    def __init__(self, engine: Engine, telemetry: "Telemetry") -> None:
        self.inner, self.telemetry = engine, telemetry
        self._waiting = telemetry.queue_depth.labels(engine.model_id)
        self._running = telemetry.generations.labels(engine.model_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        state, telemetry, model = current.get() or RequestState(), self.telemetry, self.inner.model_id
        phase, span = state.phase, None
        if telemetry.tracer:
            asked = _asked(model, phase, sampling)
            name = f"{asked['gen_ai.operation.name']} {model}"
            span = telemetry.tracer.start(name, asked, parent=state.span, kind="client")
            _calling.set(span)
        first: float | None = None
        tokens, read, cached, finish, error = 0, prompt.tokens, 0, None, None
        started = time.perf_counter()
        self._waiting.inc()
        self._running.inc()
        state.pause()
        awaiting = True
        try:
            async with aclosing(self.inner.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    state.resume()
                    awaiting = False
                    if first is None:
                        first = time.perf_counter() - started
                        self._waiting.dec()
                    tokens += delta.tokens
                    cached = max(cached, delta.cached_tokens)
                    read = delta.prompt_tokens or read
                    finish = delta.finish_reason
                    yield delta
                    state.pause()
                    awaiting = True
        except Exception as failure:
            error = _kind(failure)
            telemetry.model_errors.labels(model, error).inc()
            raise
        finally:
            if awaiting:
                state.resume()
            self._running.dec()
            if first is None:
                self._waiting.dec()
            else:
                telemetry.first_token.labels(model, phase).observe(first)
            telemetry.generation_seconds.labels(model, phase).observe(time.perf_counter() - started)
            if span:
                span.set(_generated(first, tokens, read, cached, finish))
                span.end(error)
                _calling.set(None)


class ObservedScorer:
    """A `Scorer` whose batches are counted, timed and traced."""

    def __init__(self, scorer: Scorer, telemetry: "Telemetry") -> None:
        self.inner, self.telemetry = scorer, telemetry
        self._waiting = telemetry.queue_depth.labels(scorer.model_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        state, telemetry, model = current.get() or RequestState(), self.telemetry, self.inner.model_id
        span, error = None, None
        if telemetry.tracer:
            asked = {
                "gen_ai.operation.name": "score",
                "gen_ai.provider.name": "pit",
                "gen_ai.request.model": model,
                "pit.phase": "score",
                "pit.score.comparisons": len(comparisons),
            }
            span = telemetry.tracer.start(f"score {model}", asked, parent=state.span, kind="client")
            _calling.set(span)
        telemetry.scorer_batch.labels(model).observe(len(comparisons))
        started = time.perf_counter()
        self._waiting.inc()
        state.pause()
        try:
            scores = await self.inner.score(comparisons)
        except Exception as failure:
            error = _kind(failure)
            telemetry.model_errors.labels(model, error).inc()
            raise
        else:
            if span:
                span.set({"gen_ai.usage.input_tokens": scores.tokens})
            return scores
        finally:
            state.resume()
            self._waiting.dec()
            telemetry.scorer_seconds.labels(model).observe(time.perf_counter() - started)
            if span:
                span.end(error)
                _calling.set(None)


def _kind(error: BaseException) -> str:
    """A failure as a label: the code of our own errors, the class of others. Never its text."""
    return (error.code or "unknown") if isinstance(error, AppError) else type(error).__name__


def _asked(model: str, phase: str, sampling: Sampling) -> dict[str, Any]:
    """The attributes of a generation before it starts; stop strings are text of the user and stay out."""
    asked = {
        "gen_ai.operation.name": "text_completion" if phase == "completion" else "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stream": True,
        "pit.phase": phase,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _generated(
    first: float | None, tokens: int, read: int | None, cached: int, finish: str | None
) -> dict[str, Any]:
    """The attributes of a generation at its end."""
    found: dict[str, Any] = {"gen_ai.usage.output_tokens": tokens}
    if read is not None:
        found["gen_ai.usage.input_tokens"] = read
    if cached:
        found["gen_ai.usage.cache_read.input_tokens"] = cached
    if first is not None:
        found["gen_ai.response.time_to_first_chunk"] = first
    if finish:
        found["gen_ai.response.finish_reasons"] = (finish,)
    return found
