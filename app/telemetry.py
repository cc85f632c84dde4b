"""Prometheus metrics, all named pit_*. No label and no value is taken from a prompt or a response."""

import logging
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from app.improve.events import (
    CandidateScored,
    Event,
    IterationAccepted,
    IterationRejected,
    RunCompleted,
    RunFailed,
    TokenCount,
    Usage,
)
from app.improve.loop import ImprovementRun

log = logging.getLogger(__name__)
# The time a series was created doubles the output and tells an operator nothing.
disable_created_metrics()  # type: ignore[no-untyped-call]
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def log_failure(what: str, error: BaseException) -> None:
    """Log an unexpected exception by its type and its place: its text may hold a part of a prompt."""
    log.error(
        "%s failed: %s\n%s", what, type(error).__qualname__, "".join(traceback.format_tb(error.__traceback__))
    )


class Telemetry:
    """The metrics of one server. Each server has its own registry, so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pit_requests", "HTTP requests", ["route", "method", "status"], registry=registry
        )
        self.in_flight = Gauge("pit_requests_in_flight", "HTTP requests being answered", registry=registry)
        self.seconds = Histogram(
            "pit_request_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.disconnects = Counter(
            "pit_disconnects",
            "Clients that left before the end of their answer",
            ["route"],
            registry=registry,
        )
        self.runs = Counter(
            "pit_runs", "Finished runs", ["strategy", "stop_reason", "scoring"], registry=registry
        )
        self.failed_runs = Counter(
            "pit_runs_failed", "Runs that failed", ["strategy", "code"], registry=registry
        )
        self.improved = Counter(
            "pit_runs_improved",
            "Runs whose response differs from the reference",
            ["strategy"],
            registry=registry,
        )
        self.iterations = Counter("pit_iterations", "Iterations", ["strategy", "outcome"], registry=registry)
        self.win_probability = Histogram(
            "pit_win_probability",
            "Calibrated win probability of scored candidates",
            ["strategy"],
            buckets=[i / 10 for i in range(1, 11)],
            registry=registry,
        )
        self.tokens = Counter("pit_tokens", "Tokens read and written", ["phase", "kind"], registry=registry)
        self.stored_runs = Counter(
            "pit_store_runs", "Runs that were to be stored, by outcome", ["outcome"], registry=registry
        )
        self.store_failures = Counter(
            "pit_store_failures", "Writes that the database refused", registry=registry
        )
        self.store_pending = Gauge(
            "pit_store_pending_runs", "Runs whose record is not complete in the database", registry=registry
        )
        self.store_seconds = Histogram(
            "pit_store_write_seconds",
            "Time of one batch of writes",
            buckets=(0.001, 0.003, *SECONDS[:6]),
            registry=registry,
        )
        self.ready = Gauge("pit_ready", "1 when the server is ready", registry=registry)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def count(self, phase: str, tokens: TokenCount) -> None:
        """Count the tokens of one phase: draft, improve, score or chat."""
        numbers = {
            "prompt": tokens.prompt_tokens,
            "completion": tokens.completion_tokens,
            "cached": tokens.cached_tokens,
        }
        for kind, number in numbers.items():
            if number:
                self.tokens.labels(phase, kind).inc(number)

    async def observe(self, run: ImprovementRun) -> AsyncGenerator[Event, None]:
        """The events of a run, counted as they pass. Tokens are counted however the run ends."""
        strategy = run.options.strategy
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    self._count_event(strategy, event)
                    yield event
        finally:
            self._count_usage(run.usage)

    def _count_event(self, strategy: str, event: Event) -> None:
        match event:
            case CandidateScored():
                self.win_probability.labels(strategy).observe(event.win_probability)
            case IterationAccepted():
                self.iterations.labels(strategy, "accepted").inc()
            case IterationRejected():
                self.iterations.labels(strategy, "rejected").inc()
            case RunCompleted():
                self.runs.labels(strategy, event.result.stop_reason, event.result.scoring).inc()
                if event.result.improved:
                    self.improved.labels(strategy).inc()
            case RunFailed():
                self.failed_runs.labels(strategy, event.error.code or "unknown").inc()
            case _:
                pass

    def _count_usage(self, usage: Usage) -> None:
        self.count("draft", usage.draft)
        self.count("improve", usage.improve)
        self.count("score", usage.score)
