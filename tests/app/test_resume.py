"""A run that goes on in another process ends as if it had not been interrupted."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from pydantic import TypeAdapter

from app.errors import AppError, EngineFailed
from app.improve.events import (
    Event,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    Result,
    RunCompleted,
)
from app.improve.loop import ImprovementRun
from app.improve.options import Models, Options
from app.improve.progress import Progress
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.loops import options
from tests.app.test_loop_laws import any_options

PROGRESS = TypeAdapter(Progress)


def timeless(result: Result) -> Result:
    """What a run says without how long it took."""
    return replace(result, ms=0.0, iterations=[replace(i, ms=0.0) for i in result.iterations])


async def follow(run: ImprovementRun) -> tuple[Event, list[bytes]]:
    """The last event, and the progress at every moment at which it may be taken."""
    found: list[bytes] = []
    async with aclosing(run.events()) as events:
        async for event in events:
            if isinstance(event, IterationStarted | IterationAccepted | IterationRejected):
                found.append(PROGRESS.dump_json(run.progress()))
    return event, found


async def check_law(chosen: Options, make_models: Any = fake_models) -> int:
    """Interrupt the run at every moment, and go on; how often that was."""
    try:
        run = await ImprovementRun.start(make_models(), chosen)
    except AppError:
        return 0
    whole, moments = await follow(run)
    for moment in moments:
        models: Models = make_models()
        resumed = await ImprovementRun.resume(models, chosen, PROGRESS.validate_json(moment))
        last, _ = await follow(resumed)
        if isinstance(whole, RunCompleted):
            assert isinstance(last, RunCompleted)
            assert timeless(last.result) == timeless(whole.result)
            assert last.result.ms >= PROGRESS.validate_json(moment).ms
        else:
            assert type(last) is type(whole)
    return len(moments)


@given(any_options)
@settings(max_examples=60, deadline=None)
def test_a_run_resumed_anywhere_gives_the_same_result(chosen: Options) -> None:
    """Texts, gaps, usage, stop reason, id: whatever is asked for, and wherever it was interrupted."""
    asyncio.run(check_law(chosen))


async def test_the_law_above_is_not_empty() -> None:
    """Long runs with rejections, whose scorer is asked for r_gap(y, y) once only, and drafted ones."""
    long = options(reference=None, max_iterations=6, patience=6, candidates=2, min_win_probability=0.9)
    assert await check_law(long) == 12
    assert await check_law(replace(long, max_total_tokens=400)) > 2
    assert await check_law(replace(long, scoring="off", candidates=1)) == 12


async def test_a_finished_iteration_is_not_generated_again() -> None:
    chosen = options(max_iterations=5, patience=5)
    _, moments = await follow(await ImprovementRun.start(fake_models(), chosen))
    improver = FakeEngine()
    progress = PROGRESS.validate_json(moments[-3])
    assert len(progress.iterations) == 4
    await follow(await ImprovementRun.resume(fake_models(improver=improver), chosen, progress))
    assert improver.started == 1


async def test_where_the_gap_reward_is_gone_the_best_so_far_stays() -> None:
    """Nothing goes on without the gate that has begun with it."""
    chosen = options(max_iterations=5, patience=5)
    whole, moments = await follow(await ImprovementRun.start(fake_models(), chosen))
    assert isinstance(whole, RunCompleted)
    progress = PROGRESS.validate_json(moments[3])
    down = fake_models(scorer=FakeScorer(down=EngineFailed("It is down.")))
    last, _ = await follow(await ImprovementRun.resume(down, chosen, progress))
    assert isinstance(last, RunCompleted)
    assert (last.result.scoring, last.result.stop_reason) == ("skipped", "error")
    assert last.result.iterations == list(progress.iterations)
    ended, _ = await follow(
        await ImprovementRun.resume(down, chosen, PROGRESS.validate_json(moments[-1]))
    )
    assert isinstance(ended, RunCompleted)
    assert (ended.result.scoring, ended.result.stop_reason) == ("gap", whole.result.stop_reason)


async def test_the_deadline_counts_what_was_used_before() -> None:
    slow = fake_models(improver=FakeEngine(script=lambda _: "word " * 12, delay_s=0.01))
    chosen = options(max_iterations=20, patience=20, deadline_s=0.5)
    run = await ImprovementRun.start(slow, chosen)
    async with aclosing(run.events()) as events:
        async for event in events:
            if isinstance(event, IterationRejected | IterationAccepted):
                break
    used = replace(run.progress(), ms=450.0)
    last, _ = await follow(await ImprovementRun.resume(slow, chosen, used))
    assert isinstance(last, RunCompleted)
    assert last.result.stop_reason == "deadline"
    assert last.result.ms < 650
