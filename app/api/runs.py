"""`/v1/improve/{id}`: stored runs, their events again, cancelling them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.api.lists import After, Limit
from app.api.streaming import EventStream
from app.errors import BadRequest
from app.runs import Runs, run_json, summary
from app.schemas import RunList, StoredRun

router = APIRouter(tags=["improve"])
LAST_NUMBER = 2**31 - 1
RUN: dict[int | str, dict[str, Any]] = {200: {"model": StoredRun}}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    204: {"description": "The run has ended, and these were all of its events: do not connect again."},
}


@router.get("/v1/improve", response_model=RunList)
async def list_runs(request: Request, limit: Limit = 20, after: After = None) -> Any:
    """The latest stored runs, the newest first."""
    runs: Runs = request.app.state.runs
    found = await runs.page(limit + 1, after)
    return RunList(data=[summary(record) for record in found[:limit]], has_more=len(found) > limit)


@router.get("/v1/improve/{id}", responses=RUN)
async def get_run(id: str, request: Request) -> Response:
    """A run: its state, its request, and its result or its error."""
    runs: Runs = request.app.state.runs
    return Response(run_json(await runs.get(id)), media_type="application/json")


@router.get("/v1/improve/{id}/events", responses=EVENTS)
async def get_events(
    id: str, request: Request, after: Annotated[int, Query(ge=0, le=LAST_NUMBER)] = 0
) -> Response:
    """The events of a run as its stream gave them, from the one after `Last-Event-ID` or `after`, and those
    to come."""
    runs: Runs = request.app.state.runs
    chunks = await runs.events(id, _last_event_id(request, after))
    if chunks is None:
        return Response(status_code=204)
    ping_s = runs.settings.ping_interval_s
    return EventStream(chunks, ping_s=ping_s, telemetry=runs.telemetry, at_once=True)


@router.post("/v1/improve/{id}/cancel", responses=RUN)
async def cancel_run(id: str, request: Request) -> Response:
    """Cancel a run: it ends with the best response so far, for its caller too. One that has ended stays as it
    is; either way the answer is the run."""
    runs: Runs = request.app.state.runs
    return Response(run_json(await runs.cancel(id)), media_type="application/json")


def _last_event_id(request: Request, after: int) -> int:
    """The header, which a browser sends when it connects again, wins over the address."""
    given = request.headers.get("last-event-id", "")
    if not given:
        return after
    if not (given.isascii() and given.isdecimal() and len(given) < 11 and int(given) <= LAST_NUMBER):
        raise BadRequest("The header Last-Event-ID is not the id of an event.", param="last-event-id")
    return int(given)
