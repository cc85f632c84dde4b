"""`pit bench`: how fast a running server answers, measured from outside.

A closed loop: `concurrency` users, each of whom sends the next request when the last one is answered, until
`requests` are answered or `seconds` have passed. Four kinds of request, one after the other, so that none
disturbs another. Whatever is not a complete answer is an error: a status other than 200, an error event, a
stream that ends early, a broken connection, a timeout.
"""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import httpx
from rich.console import Console
from rich.table import Table

Kind = Literal["improve", "improve-stream", "chat", "chat-stream"]
KINDS: tuple[Kind, ...] = get_args(Kind)
QUESTION = "Question {n}. The lamp has price 24 euros, color red, origin Oslo. What about the price?"
REFERENCE = "It has price 24 euros. My cat sleeps all morning."


class BenchError(Exception):
    """The server cannot be measured. The message says why, and what to do."""


@dataclass(frozen=True)
class Load:
    """What is sent. `requests` and `seconds` bound each kind; `timeout_s` bounds each request.

    `reference` None: the policy drafts first. `options` are added to every body as they are.
    """

    concurrency: int = 8
    requests: int = 100
    seconds: float = 60.0
    timeout_s: float = 120.0
    model: str = "policy"
    questions: tuple[str, ...] = (QUESTION,)
    reference: str | None = REFERENCE
    options: dict[str, Any] = field(default_factory=dict)

    def request(self, kind: Kind, number: int) -> tuple[str, dict[str, Any]]:
        """Route and body of request `number`. `{n}` in a question becomes the number: no two are alike."""
        question = self.questions[number % len(self.questions)].replace("{n}", str(number))
        body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], **self.options}
        if kind.endswith("-stream"):
            body["stream"] = True
        if kind.startswith("improve"):
            if self.reference is not None:
                body["reference"] = self.reference
            return "/v1/improve", body
        body["model"] = self.model
        if "stream" in body:
            body["stream_options"] = {"include_usage": True}
        return "/v1/chat/completions", body


@dataclass(slots=True)
class Sample:
    """One answered request. Times in seconds; `tokens` were generated for it."""

    seconds: float = 0.0
    first_event: float | None = None
    first_text: float | None = None
    tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """What one kind of request gave. Times in milliseconds; without errors only where `errors` is empty."""

    kind: str
    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    latency_ms: dict[str, float]
    first_event_ms: dict[str, float]
    first_text_ms: dict[str, float]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and max by nearest rank; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 90, 99)}
    return ranks | {"max": ordered[-1]}


async def measure(http: httpx.AsyncClient, load: Load, kind: Kind) -> Figures:
    """Send one kind of request. The first request of each user opens its connection and does not count."""
    samples: list[Sample] = []
    numbers: Iterator[int] = iter(range(load.requests))
    started = time.perf_counter()

    async def user(warm_up: int) -> None:
        first = await ask(http, load, kind, load.requests + warm_up)
        if first.error:
            samples.append(first)
        await ready.wait()
        for number in numbers:
            if time.perf_counter() - started >= load.seconds:
                return
            samples.append(await ask(http, load, kind, number))

    ready = asyncio.Barrier(load.concurrency + 1)
    async with asyncio.TaskGroup() as users:
        for number in range(load.concurrency):
            users.create_task(user(number))
        await ready.wait()
        started = time.perf_counter()
    return _figures(kind, samples, time.perf_counter() - started)


def _figures(kind: Kind, samples: Sequence[Sample], seconds: float) -> Figures:
    good = [sample for sample in samples if sample.error is None]
    firsts = [
        [1000 * value for sample in good if (value := getattr(sample, name)) is not None]
        for name in ("first_event", "first_text")
    ]
    return Figures(
        kind=kind,
        requests=len(good),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        seconds=seconds,
        requests_per_s=len(good) / seconds,
        tokens_per_s=sum(sample.tokens for sample in good) / seconds,
        latency_ms=percentiles([1000 * sample.seconds for sample in good]),
        first_event_ms=percentiles(firsts[0]),
        first_text_ms=percentiles(firsts[1]),
    )


async def ask(http: httpx.AsyncClient, load: Load, kind: Kind, number: int) -> Sample:
    """One request from the first byte to the last. Errors are in the sample, never raised."""
    route, body = load.request(kind, number)
    sample, started = Sample(), time.perf_counter()
    try:
        async with asyncio.timeout(load.timeout_s):
            if "stream" in body:
                await _read_stream(http, route, body, sample, started)
            else:
                answer = await http.post(route, json=body)
                if answer.status_code == 200:
                    sample.tokens = _tokens(answer.json())
                else:
                    sample.error = f"HTTP {answer.status_code}"
    except TimeoutError:
        sample.error = f"no answer within {load.timeout_s:g} s"
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        sample.error = type(error).__name__
    sample.seconds = time.perf_counter() - started
    return sample


async def _read_stream(
    http: httpx.AsyncClient, route: str, body: dict[str, Any], sample: Sample, started: float
) -> None:
    complete = False
    async with http.stream("POST", route, json=body) as answer:
        if answer.status_code != 200:
            sample.error = f"HTTP {answer.status_code}"
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if sample.first_event is None:
                sample.first_event = time.perf_counter() - started
            if line == "data: [DONE]":
                complete = True
                continue
            event = json.loads(line[6:])
            if sample.first_text is None and _has_text(event):
                sample.first_text = time.perf_counter() - started
            if "error" in event:
                sample.error = f"error event {event['error']['code']}"
            elif event.get("type") == "run.completed":
                complete, sample.tokens = True, _tokens(event["improvement"])
            elif event.get("usage"):
                sample.tokens = _tokens(event)
    if not complete and sample.error is None:
        sample.error = "the stream ended early"


def _has_text(event: dict[str, Any]) -> bool:
    if event.get("type") == "output.delta":
        return True
    return any(choice["delta"].get("content") for choice in event.get("choices", ()))


def _tokens(answer: dict[str, Any]) -> int:
    """Tokens that were generated for an answer of either route."""
    usage = answer["usage"]
    if "improve" in usage:
        return int(usage["draft"]["completion_tokens"] + usage["improve"]["completion_tokens"])
    return int(usage["completion_tokens"])


def connect(url: str, load: Load, key: str | None) -> httpx.AsyncClient:
    """A client with one connection for each user."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key}"} if key else None,
        limits=httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency),
        timeout=load.timeout_s,
    )


async def _measure_all(
    url: str, key: str | None, load: Load, kinds: Sequence[Kind], console: Console
) -> list[Figures]:
    async with connect(url, load, key) as http:
        try:
            ready = await http.get("/health/ready", timeout=10)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BenchError(
                f"No server answers at {url} ({type(error).__name__}). Start pit serve, or give --url."
            ) from None
        if ready.status_code != 200:
            raise BenchError(f"{url} is not ready (HTTP {ready.status_code}); /health/ready says why.")
        found = []
        for kind in kinds:
            with console.status(f"{kind}: {load.requests} requests, {load.concurrency} at a time"):
                found.append(await measure(http, load, kind))
        return found


def bench(
    url: str, key: str | None, load: Load, kinds: Sequence[Kind], console: Console, as_json: bool
) -> bool:
    """Measure and print; whether every request was answered. Raises `BenchError`."""
    found = asyncio.run(_measure_all(url.rstrip("/"), key, load, kinds, console))
    if as_json:
        figures = [asdict(one) for one in found]
        print(json.dumps({"url": url, "load": asdict(load), "figures": figures}, indent=1))
    else:
        console.print(table(found))
        for one in found:
            for error, count in one.errors.items():
                console.print(f"[bold red]{one.kind}: {count} × {error}[/]", highlight=False)
    return not any(one.errors for one in found)


def table(found: Sequence[Figures]) -> Table:
    """The figures for people, a column for each kind: four fit into 80 characters."""
    shown = Table("", *(one.kind for one in found), box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    shown.add_row("requests", *(str(one.requests) for one in found))
    shown.add_row("errors", *(str(sum(one.errors.values())) for one in found))
    shown.add_row("requests/s", *(f"{one.requests_per_s:.1f}" for one in found))
    shown.add_row("tokens/s", *(f"{one.tokens_per_s:.0f}" for one in found))
    times = {"latency": "latency_ms", "first event": "first_event_ms", "first text": "first_text_ms"}
    for name, field_name in times.items():
        for rank in ("p50", "p90", "p99") if name == "latency" else ("p50", "p99"):
            values = [getattr(one, field_name).get(rank) for one in found]
            cells = ["–" if value is None else f"{value:.1f}" for value in values]
            shown.add_row(f"{name} {rank}, ms", *cells)
    return shown
