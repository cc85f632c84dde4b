"""Asks a server about many examples side by side, with progress, and gives up on a server that is not well.

In the pipeline this stands between the systems (systems.py, studies/systems.py) and their answers. What an
example asks for is the caller's; here are the connections, the deadlines and what failures mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import httpx
from rich.console import Console

from training.data import PreferencePair
from training.errors import TrainingError
from training.progress import progress_bar
from training.systems import CallFailed, Client, Plan

T = TypeVar("T")
Ask = Callable[[Client, T, Callable[[int], None]], Awaitable[None]]
"""Ask about one example; the last argument counts calls that are done."""

FAILURES = 10
"""So many calls may fail for good before the evaluation gives up: more is a server that is not well."""


async def collect(
    url: str,
    examples: Sequence[T],
    ask: Ask[T],
    probe: PreferencePair,
    *,
    calls: int,
    concurrency: int,
    deadline_s: float,
    console: Console,
) -> None:
    """Ask about every example, `concurrency` at a time; `probe` is any example to try the server with.

    Raises:
        TrainingError: the server is none of ours, lacks a model, or too many calls failed.
    """
    waiting = iter(examples)
    failures: list[CallFailed] = []
    # An idle connection is given up before a server closes it (uvicorn's default: 5 s): a request that meets
    # the closing breaks, and cannot be sent again without knowing whether it was begun.
    limits = httpx.Limits(
        max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=2.0
    )
    timeout = httpx.Timeout(deadline_s, connect=5.0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout) as http:
        client = Client(http, deadline_s)
        await check_models(client, probe)
        with progress_bar(console) as bar:
            task = bar.add_task("calls", total=calls)

            def advance(done: int) -> None:
                bar.advance(task, done)

            async def work() -> None:
                for example in waiting:
                    try:
                        await ask(client, example, advance)
                    except CallFailed as error:
                        failures.append(error)
                        if len(failures) >= FAILURES:
                            raise

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(concurrency):
                        group.create_task(work())
            except* CallFailed as errors:
                raise TrainingError(_gave_up(errors.exceptions[0])) from None
    if failures:
        console.print(f"[yellow]{len(failures)} calls failed, the last: {failures[-1]}[/yellow]")


def _gave_up(error: BaseException) -> str:
    return f"{error}. The answers so far are kept; run the same command again to go on"


async def check_models(client: Client, pair: PreferencePair) -> None:
    """One look before a thousand calls: is this a server, with all three models?

    Raises:
        TrainingError: it is not; the message says what is missing.
    """
    quick = replace(client, deadline_s=min(client.deadline_s, 15.0))
    try:
        async with asyncio.timeout(quick.deadline_s):
            answer = await quick.http.get("/v1/models")
        names = {model["id"] for model in answer.json()["data"]}
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError):
        raise TrainingError(f"no pit serve answers at {client.http.base_url}") from None
    if not {"policy", "pit"} <= names:
        raise TrainingError(
            f"the server at {client.http.base_url} needs --policy, --improver and --gap-reward"
        )
    try:
        await quick.post(*Plan().systems()["score"](Plan(), pair, ""))
    except CallFailed as error:
        if not error.refused:
            raise TrainingError(f"the server at {client.http.base_url} cannot score: {error}") from None
