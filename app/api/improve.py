"""`POST /v1/improve`, unary and streamed, and `POST /v1/score`."""

from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.streaming import EventStream, unless_disconnected
from app.engines.base import Message
from app.errors import ContextTooLong, ScoringUnavailable
from app.improve.events import Result, RunCompleted, RunFailed
from app.improve.gate import Gate
from app.improve.loop import ImprovementRun
from app.improve.options import Models
from app.runs import Runs
from app.runtime import Runtime
from app.schemas import ERRORS, STREAMED, Improvement, ImproveRequest, Score, ScoreList, ScoreRequest
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


@router.post("/v1/improve", response_model=Improvement, responses=STREAMED)
async def improve(body: ImproveRequest, request: Request) -> Any:
    """Improve a response. With `stream: true` the answer is a stream of Server-Sent Events."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    runs: Runs = request.app.state.runs
    run = runs.take(await ImprovementRun.start(runtime.models, body.options()), body)
    if body.stream:
        return EventStream(run.stream(), ping_s=runtime.settings.ping_interval_s, telemetry=telemetry)

    async def answer() -> Response:
        return Response(await run.answer(), media_type="application/json")

    return await unless_disconnected(request, answer(), telemetry)


@router.post("/v1/score", response_model=Score | ScoreList, responses=ERRORS)
async def score(body: ScoreRequest, request: Request) -> Any:
    """The calibrated probability that one response beats another; a list of candidates gives a list."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    return await unless_disconnected(request, _score(runtime.models, body), telemetry)


async def _score(models: Models, body: ScoreRequest) -> Score | ScoreList:
    if models.scorer is None:
        raise ScoringUnavailable("This server has no gap reward. Start it with --gap-reward.")
    messages = tuple(Message(role=m.role, content=m.text()) for m in body.messages)
    candidates = [body.candidate] if isinstance(body.candidate, str) else body.candidate
    verdicts, _ = await Gate(models.scorer, models.calibration, messages).judge(candidates, body.baseline)
    scores = []
    for number, verdict in enumerate(verdicts, 1):
        if verdict is None:
            which = "the candidate" if isinstance(body.candidate, str) else f"candidate {number}"
            raise ContextTooLong(
                f"The conversation with both responses does not fit the gap reward's context of"
                f" {models.scorer.context_length} tokens. Shorten {which}.",
                param="candidate",
            )
        name = models.scorer.model_id
        scores.append(Score(gap=verdict.gap, win_probability=verdict.win_probability, model=name))
    return scores[0] if isinstance(body.candidate, str) else ScoreList(data=scores)
