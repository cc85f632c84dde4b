"""`/v1/feedback`: what people preferred, and the preference pairs that it makes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from app.api.lists import ID, After, Limit
from app.feedback import Feedback
from app.schemas_feedback import FeedbackList, FeedbackOut, FeedbackRequest

router = APIRouter(tags=["feedback"])
LINES = "application/jsonl"
Since = Annotated[float, Query(ge=0, le=1e11, description="seconds since the epoch")]
EXPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {LINES: {"schema": {"type": "string"}}},
        "description": "Lines of JSON, each a pair in chat form with its provenance (docs/feedback.md).",
    },
}


@router.post("/v1/feedback", status_code=201, response_model=FeedbackOut)
async def add_feedback(body: FeedbackRequest, request: Request) -> Any:
    """Say which of two responses is better, which edits were accepted, how good a response is, or what it
    should have been. The answer comes when it is on the disk."""
    feedback: Feedback = request.app.state.feedback
    return await feedback.add(body)


@router.get("/v1/feedback", response_model=FeedbackList)
async def list_feedback(
    request: Request,
    limit: Limit = 20,
    after: After = None,
    run: Annotated[str | None, Query(pattern=ID, description="only about this run")] = None,
    since: Since = 0.0,
) -> Any:
    """What the caller has said, the newest first, without texts: these are in the export."""
    feedback: Feedback = request.app.state.feedback
    return await feedback.latest(limit, after, run, since)


@router.get("/v1/feedback/export", response_class=StreamingResponse, responses=EXPORT)
async def export_feedback(
    request: Request,
    after: Annotated[int, Query(ge=0, lt=2**63, description="cursor of the last pair that was seen")] = 0,
    since: Since = 0.0,
) -> StreamingResponse:
    """The preference pairs, one a line, as `pit-train run --from-feedback` reads them."""
    feedback: Feedback = request.app.state.feedback
    return StreamingResponse(await feedback.export(after, since), media_type=LINES)
