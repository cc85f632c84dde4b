"""Runs of the improvement loop on fakes, for the tests of the loop."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from app.engines.base import Message
from app.improve.events import Event, Result, RunCompleted, RunFailed
from app.improve.loop import ImprovementRun
from app.improve.options import Models, Options

QUESTION: tuple[Message, ...] = ({"role": "user", "content": "What is the price ?"},)


def options(**changes: Any) -> Options:
    return replace(Options(messages=QUESTION, reference="no", seed=1), **changes)


async def collect(models: Models, chosen: Options) -> list[Event]:
    run = await ImprovementRun.start(models, chosen)
    async with aclosing(run.events()) as events:
        return [event async for event in events]


async def result_of(models: Models, chosen: Options) -> Result:
    last = (await collect(models, chosen))[-1]
    if isinstance(last, RunFailed):
        raise last.error
    assert isinstance(last, RunCompleted)
    return last.result
