"""`/v1/batches`: many requests in one file, worked on beside those that people wait for."""

import json
from typing import Any

from fastapi import APIRouter, Request

from app.api.lists import After, Limit
from app.batch.service import Batches
from app.schemas_batch import BatchErrors, BatchList, BatchObject, BatchRequest, RequestCounts
from app.security import caller
from app.store.batches import BatchRecord

router = APIRouter(tags=["batches"])
LASTS = ("completed", "failed", "expired", "cancelled")


@router.post("/v1/batches", response_model=BatchObject)
async def create_batch(body: BatchRequest, request: Request) -> Any:
    """Begin a batch over the requests of an uploaded file."""
    batches: Batches = request.app.state.batches
    return batch_object(await batches.create(caller().owner, body))


@router.get("/v1/batches", response_model=BatchList)
async def list_batches(request: Request, limit: Limit = 20, after: After = None) -> Any:
    """The caller's batches, the newest first."""
    batches: Batches = request.app.state.batches
    found = await batches.batch_page(caller().owner, limit + 1, after)
    shown = [batch_object(record) for record in found[:limit]]
    return BatchList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/batches/{batch_id}", response_model=BatchObject)
async def get_batch(batch_id: str, request: Request) -> Any:
    """How far a batch has come."""
    batches: Batches = request.app.state.batches
    return batch_object(await batches.batch(caller().owner, batch_id))


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject)
async def cancel_batch(batch_id: str, request: Request) -> Any:
    """Stop a batch: what is done becomes its output, the rest is in its error file."""
    batches: Batches = request.app.state.batches
    return batch_object(await batches.cancel(caller().owner, batch_id))


def batch_object(record: BatchRecord) -> BatchObject:
    """A batch as OpenAI's API shows it."""
    ends = {f"{last}_at": _seconds(record.ended) if record.status == last else None for last in LASTS}
    errors = None if record.errors is None else BatchErrors(data=json.loads(record.errors))
    return BatchObject.model_validate(
        {
            "id": record.id,
            "endpoint": record.endpoint,
            "errors": errors,
            "input_file_id": record.input_file_id,
            "completion_window": record.completion_window,
            "status": record.status,
            "output_file_id": record.output_file_id,
            "error_file_id": record.error_file_id,
            "created_at": int(record.created),
            "in_progress_at": _seconds(record.in_progress),
            "expires_at": int(record.expires),
            "finalizing_at": _seconds(record.finalizing),
            "cancelling_at": _seconds(record.cancelling),
            "request_counts": RequestCounts(
                total=record.total, completed=record.completed, failed=record.failed
            ),
            "metadata": None if record.metadata is None else json.loads(record.metadata),
        }
        | ends
    )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
