"""`POST /v1/improve`, unary and streamed, and `POST /v1/score`."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.scoring import Scoring
from app.api.streaming import respond
from app.improve.events import (
    Event,
    IterationAccepted,
    IterationRejected,
    IterationStarted,
    Result,
    RunCompleted,
    RunFailed,
)
from app.improve.loop import ImprovementRun
from app.improve.options import Models, Options
from app.improve.progress import Progress
from app.runs import Runs
from app.runtime import Runtime
from app.schemas import STREAMED, Improvement, ImproveRequest, Score, ScoreList, ScoreRequest
from app.telemetry import Telemetry

router = APIRouter(tags=["improve"])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run goes on (None: it begins), and what is told how far it has come."""

    progress: Progress | None
    save: Callable[[Progress], Awaitable[None]]


async def begin(models: Models, options: Options, checkpoint: Checkpoint | None = None) -> ImprovementRun:
    """A run from its start, or from where it was. Raises as `ImprovementRun.start` does."""
    if checkpoint and checkpoint.progress:
        return await ImprovementRun.resume(models, options, checkpoint.progress)
    return await ImprovementRun.start(models, options)


async def finish(run: ImprovementRun, telemetry: Telemetry, checkpoint: Checkpoint | None = None) -> Result:
    """Run to the end. Raises the run's error when it failed."""
    async with aclosing(telemetry.observe(run)) as events:
        async for event in events:
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, RunCompleted):
                return event.result
            if checkpoint and _got_further(event, run):
                await checkpoint.save(run.progress())
    raise AssertionError("a run ends with run.completed or run.failed")


def _got_further(event: Event, run: ImprovementRun) -> bool:
    """An iteration has ended, or the draft has."""
    drafted = isinstance(event, IterationStarted) and event.index == 1 and run.options.reference is None
    return drafted or isinstance(event, IterationAccepted | IterationRejected)


@router.post("/v1/improve", response_model=Improvement, responses=STREAMED)
async def improve(body: ImproveRequest, request: Request) -> Any:
    """Improve a response. With `stream: true` the answer is a stream of Server-Sent Events."""
    runtime: Runtime = request.app.state.runtime
    runs: Runs = request.app.state.runs
    run = runs.take(await ImprovementRun.start(runtime.models, body.options()), body)

    async def answer() -> Response:
        return Response(await run.answer(), media_type="application/json")

    return await respond(request, run.run, answer, run.stream() if body.stream else None)


@router.post("/v1/score", response_model=Score | ScoreList)
async def score(body: ScoreRequest, request: Request) -> Any:
    """The calibrated probability that one response beats another; a list of candidates gives a list."""
    runtime: Runtime = request.app.state.runtime
    scoring = Scoring(runtime.models, body)
    return await respond(request, scoring, scoring.answer)
