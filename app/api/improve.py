"""`POST /v1/improve`, unary and streamed, and `POST /v1/score`."""

from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.scoring import Scoring
from app.api.streaming import EventStream, unless_disconnected
from app.improve.events import Result, RunCompleted, RunFailed
from app.improve.loop import ImprovementRun
from app.runs import Runs
from app.runtime import Runtime
from app.schemas import ERRORS, Improvement, ImproveRequest, Score, ScoreList, ScoreRequest
from app.telemetry import Telemetry

router = APIRouter(tags=["improve"])


async def finish(run: ImprovementRun, telemetry: Telemetry) -> Result:
    """Run to the end. Raises the run's error when it failed."""
    async with aclosing(telemetry.observe(run)) as events:
        async for event in events:
            if isinstance(event, RunFailed):
                raise event.error
            if isinstance(event, RunCompleted):
                return event.result
    raise AssertionError("a run ends with run.completed or run.failed")


@router.post("/v1/improve", response_model=Improvement, responses=ERRORS)
async def improve(body: ImproveRequest, request: Request) -> Any:
    """Improve a response. With `stream: true` the answer is a stream of Server-Sent Events."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    runs: Runs = request.app.state.runs
    run = runs.take(await ImprovementRun.start(runtime.models, body.options()), body)
    entry = request.app.state.limits.entry(run.run)
    if body.stream:
        ping_s = runtime.settings.ping_interval_s
        return EventStream(run.stream(), ping_s=ping_s, telemetry=telemetry, entry=entry)

    async def answer() -> Response:
        return Response(await run.answer(), media_type="application/json")

    return await unless_disconnected(request, answer, telemetry, entry)


@router.post("/v1/score", response_model=Score | ScoreList, responses=ERRORS)
async def score(body: ScoreRequest, request: Request) -> Any:
    """The calibrated probability that one response beats another; a list of candidates gives a list."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    scoring = Scoring(runtime.models, body)
    entry = request.app.state.limits.entry(scoring)
    return await unless_disconnected(request, scoring.answer, telemetry, entry)
