"""Prometheus metrics, all named pit_*, and the spans of runs. No label, no value and no attribute is taken
from a prompt or a response. docs/telemetry.md explains every one of them."""

import functools
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from copy import deepcopy
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from app.improve.events import (
    CandidateScored,
    Event,
    Iteration,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    OutputDelta,
    RunCompleted,
    RunCreated,
    RunFailed,
    TokenCount,
    Usage,
)
from app.improve.loop import ImprovementRun
from app.observe import RequestState, Span, Tracer, current

log = logging.getLogger(__name__)
Metrics = TypeVar("Metrics", Counter, Gauge, Histogram)
# The time a series was created doubles the output and tells an operator nothing.
disable_created_metrics()  # type: ignore[no-untyped-call]
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
SHORT_SECONDS = (0.0003, 0.001, 0.003, *SECONDS[:6])
GAPS = (-4, -2, -1, -0.5, -0.2, 0, 0.2, 0.5, 1, 2, 4)


def log_failure(what: str, error: BaseException) -> None:
    """Log an unexpected exception by its type and its place: its text may hold a part of a prompt."""
    log.error(
        "%s failed: %s\n%s", what, type(error).__qualname__, "".join(traceback.format_tb(error.__traceback__))
    )


def _quick(metric: Metrics) -> Metrics:
    """The metric, whose series are looked up without a lock: a request does it thirty times. Labels take few
    values, so that all of them can be kept."""
    metric.labels = functools.cache(metric.labels)  # type: ignore[method-assign]
    return metric


class _EventLoopTime(Collector):
    """CPU time of the thread that reads it, which is the event loop's: /metrics is answered there."""

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "pit_event_loop_cpu_seconds",
            "CPU time of the thread that handles the requests",
            value=time.thread_time(),
        )


class Telemetry:
    """The metrics of one server. Each server has its own registry, so that two can live in one process.

    `tracer` is None where nothing is traced.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tracer: Tracer | None = None
        self._define_requests()
        self._define_runs()
        self._define_models()
        self._define_limits()
        self._define_batches()
        self._define_feedback()
        ProcessCollector(registry=self.registry)
        self.registry.register(_EventLoopTime())

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return _quick(Counter(name, text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return _quick(Gauge(name, text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return _quick(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def _define_requests(self) -> None:
        self.requests = self._counter("pit_requests", "HTTP requests", ["route", "method", "status"])
        self.key_refusals = self._counter(
            "pit_key_refusals", "Requests refused for their API key", ["reason"]
        )
        self.in_flight = self._gauge("pit_requests_in_flight", "HTTP requests being answered")
        self.seconds = self._histogram("pit_request_seconds", "Time to the end of the answer", ["route"])
        self.overhead = self._histogram(
            "pit_overhead_seconds",
            "Time of a request without what engines, scorer and client took",
            ["route"],
            SHORT_SECONDS,
        )
        self.first_event = self._histogram(
            "pit_time_to_first_event_seconds",
            "Time from a request's arrival to the first event of its stream",
            ["route"],
            SHORT_SECONDS,
        )
        self.disconnects = self._counter(
            "pit_disconnects", "Clients that left before the end of their answer", ["route"]
        )
        self.ready = self._gauge("pit_ready", "1 when the server is ready")

    def _define_runs(self) -> None:
        self.runs = self._counter("pit_runs", "Finished runs", ["strategy", "stop_reason", "scoring"])
        self.failed_runs = self._counter("pit_runs_failed", "Runs that failed", ["strategy", "code"])
        self.improved = self._counter(
            "pit_runs_improved", "Runs whose response differs from the reference", ["strategy"]
        )
        self.iterations = self._counter("pit_iterations", "Iterations", ["strategy", "outcome"])
        self.gap = self._histogram("pit_gap", "Centred gap of scored candidates", ["strategy"], GAPS)
        self.win_probability = self._histogram(
            "pit_win_probability",
            "Calibrated win probability of scored candidates",
            ["strategy"],
            [i / 10 for i in range(1, 11)],
        )
        self.tokens = self._counter("pit_tokens", "Tokens read and written", ["phase", "kind"])
        self.stored_runs = self._counter(
            "pit_store_runs", "Runs that were to be stored, by outcome", ["outcome"]
        )
        # A series that appears with its first event hides that event from rate() and increase().
        for outcome in ("stored", "lost"):
            self.stored_runs.labels(outcome)
        self.store_failures = self._counter("pit_store_failures", "Writes that the database refused")
        self.store_pending = self._gauge(
            "pit_store_pending_runs", "Runs whose record is not complete in the database"
        )
        self.store_seconds = self._histogram(
            "pit_store_write_seconds", "Time of one batch of writes", [], (0.001, 0.003, *SECONDS[:6])
        )

    def _define_limits(self) -> None:
        self.admitted = self._gauge("pit_admitted_requests", "Requests that hold a slot")
        self.admission_queue = self._gauge("pit_admission_queue_depth", "Requests that wait for a slot")
        self.admission_wait = self._histogram(
            "pit_admission_wait_seconds", "Time of requests that had to wait for a slot", [], SHORT_SECONDS
        )
        self.limited = self._counter("pit_limited", "Requests that a limit refused", ["reason", "scope"])
        self.limit_tokens = self._counter(
            "pit_limit_tokens", "Tokens charged to requests, and refunded to them", ["kind"]
        )
        self.limits_degraded = self._gauge(
            "pit_limits_degraded", "1 while the limits' Redis cannot be used and each server counts alone"
        )

    def _define_models(self) -> None:
        self.queue_depth = self._gauge(
            "pit_queue_depth",
            "Generations that wait for their first token, scoring batches that wait for their scores",
            ["model"],
        )
        self.generations = self._gauge("pit_generations_in_flight", "Generations not ended", ["model"])
        self.first_token = self._histogram(
            "pit_first_token_seconds", "Time to a generation's first token", ["model", "phase"]
        )
        self.generation_seconds = self._histogram(
            "pit_generation_seconds", "Time of a generation", ["model", "phase"]
        )
        self.scorer_batch = self._histogram(
            "pit_scorer_batch_comparisons", "Comparisons in a scoring batch", ["model"], (1, 2, 4, 8, 16, 32)
        )
        self.scorer_seconds = self._histogram("pit_scorer_seconds", "Time of a scoring batch", ["model"])
        self.model_errors = self._counter(
            "pit_model_errors", "Generations and scoring batches that failed", ["model", "code"]
        )

    def _define_batches(self) -> None:
        self.batches = self._counter("pit_batches", "Batches that this server ended", ["status"])
        self.batch_items = self._counter(
            "pit_batch_items", "Batch items, by what became of them", ["outcome"]
        )
        self.batch_running = self._gauge("pit_batch_items_in_flight", "Batch items being worked on")
        self.batch_waiting = self._gauge(
            "pit_batch_items_waiting", "Items of all batches in progress that have no result yet"
        )

    def _define_feedback(self) -> None:
        self.feedback = self._counter("pit_feedback", "Feedback that was stored", ["type"])
        self.feedback_preferred = self._counter(
            "pit_feedback_preferred",
            "Feedback that compares what the loop made with what it was made from",
            ["preferred"],
        )
        for preferred in ("improved", "reference", "part"):
            self.feedback_preferred.labels(preferred)
        self.idempotent = self._counter(
            "pit_idempotent_requests", "Requests with an Idempotency-Key", ["outcome"]
        )

    def render(self, engine: CollectorRegistry | None = None) -> bytes:
        """The metrics in Prometheus' text format, the engines' own after them."""
        return generate_latest(self.registry) + (generate_latest(engine) if engine else b"")

    def count(self, phase: str, tokens: TokenCount) -> None:
        """Count the tokens of one phase: chat, completion, draft, improve or score."""
        for kind, number in (
            ("prompt", tokens.prompt_tokens),
            ("completion", tokens.completion_tokens),
            ("cached", tokens.cached_tokens),
        ):
            if number:
                self.tokens.labels(phase, kind).inc(number)
        if (state := current.get()) and phase != "score":
            state.prompt_tokens += tokens.prompt_tokens
            state.completion_tokens += tokens.completion_tokens

    async def observe(self, run: ImprovementRun) -> AsyncGenerator[Event, None]:
        """The events of a run, counted and traced as they pass. Tokens are counted however it ends; of a run
        that is resumed, only those that are new."""
        strategy, state = run.options.strategy, current.get()
        if state is None:
            state = RequestState()
            current.set(state)
        state.run_id = run.id
        spans = _RunSpans(self.tracer, run, state) if self.tracer else None
        before = deepcopy(run.usage) if run.ms_before else Usage()
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    if type(event) is not OutputDelta:  # the one that comes a hundred times
                        self._count_event(strategy, event, state)
                        if spans:
                            spans.follow(event)
                    yield event
        finally:
            self._count_usage(run.usage, before)
            if spans:
                spans.end(run.usage)

    def _count_event(self, strategy: str, event: Event, state: RequestState) -> None:
        match event:
            case RunCreated():
                state.phase = "draft"
            case IterationStarted():
                state.phase = "improve"
            case CandidateScored():
                self.gap.labels(strategy).observe(event.gap)
                self.win_probability.labels(strategy).observe(event.win_probability)
            case IterationAccepted():
                self.iterations.labels(strategy, "accepted").inc()
            case IterationRejected():
                self.iterations.labels(strategy, "rejected").inc()
            case RunCompleted():
                state.stop_reason = event.result.stop_reason
                self.runs.labels(strategy, event.result.stop_reason, event.result.scoring).inc()
                if event.result.improved:
                    self.improved.labels(strategy).inc()
            case RunFailed():
                state.error = event.error.code
                self.failed_runs.labels(strategy, event.error.code or "unknown").inc()
            case _:
                pass

    def _count_usage(self, usage: Usage, before: Usage) -> None:
        self.count("draft", usage.draft.since(before.draft))
        self.count("improve", usage.improve.since(before.improve))
        self.count("score", usage.score.since(before.score))


class _RunSpans:
    """The spans of one run and of its iterations. What is generated meanwhile is a child of the innermost."""

    def __init__(self, tracer: Tracer, run: ImprovementRun, state: RequestState) -> None:
        self.tracer, self.state, self.outer = tracer, state, state.span
        asked = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": run.options.strategy,
            "pit.run.id": run.id,
            "pit.max_iterations": run.options.max_iterations,
            "pit.candidates": run.options.candidates,
        }
        self.run = tracer.start(
            f"invoke_workflow {run.options.strategy}", asked, parent=state.span, remote=state.trace
        )
        self.iteration: Span | None = None
        self.error: str | None = "cancelled"
        """What the run's span ends with, unless an event says otherwise."""
        state.span = self.run

    def follow(self, event: Event) -> None:
        match event:
            case IterationStarted():
                self.iteration = self.tracer.start(
                    "iteration", {"pit.iteration.index": event.index}, parent=self.run
                )
                self.state.span = self.iteration
            case IterationAccepted() | IterationRejected():
                self._end_iteration(event.iteration)
            case RunCompleted():
                self.error = None
                self.run.set(
                    {
                        "pit.stop_reason": event.result.stop_reason,
                        "pit.scoring": event.result.scoring,
                        "pit.improved": event.result.improved,
                        "pit.iterations": len(event.result.iterations),
                    }
                )
            case RunFailed():
                self.error = event.error.code or "unknown"
            case _:
                pass

    def _end_iteration(self, iteration: Iteration) -> None:
        if not self.iteration:
            return
        found = {
            "pit.iteration.accepted": iteration.accepted,
            "pit.iteration.finish_reason": iteration.finish_reason,
            "pit.gap": iteration.gap,
            "pit.win_probability": iteration.win_probability,
        }
        self.iteration.set({name: value for name, value in found.items() if value is not None})
        self.iteration.end()
        self.iteration, self.state.span = None, self.run

    def end(self, usage: Usage) -> None:
        """However the run has ended: an iteration that is open was cut short."""
        if self.iteration:
            self.iteration.end(self.error or "cut_short")
        self.run.set(
            {
                "gen_ai.usage.input_tokens": usage.draft.prompt_tokens + usage.improve.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.draft.completion_tokens + usage.improve.completion_tokens,
                "pit.usage.score_tokens": usage.score.prompt_tokens,
            }
        )
        self.run.end(self.error)
        self.state.span = self.outer
