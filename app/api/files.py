"""`/v1/files`: what batches read, and what they have written."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from app.api.lists import After
from app.api.multipart import form_parts
from app.batch.service import Batches
from app.schemas_batch import FileDeleted, FileList, FileObject
from app.security import caller
from app.store.files import FileRecord

router = APIRouter(tags=["batches"])
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "file": {"type": "string", "format": "binary"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
}


@router.post("/v1/files", response_model=FileObject, openapi_extra=UPLOAD)
async def upload_file(request: Request) -> Any:
    """Keep the input file of a batch."""
    batches: Batches = request.app.state.batches
    parts = form_parts(request.headers.get("content-type", ""), request.stream())
    return file_object(await batches.upload(caller().owner, parts))


@router.get("/v1/files", response_model=FileList)
async def list_files(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    purpose: Literal["batch", "batch_output"] | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Any:
    """The caller's files."""
    batches: Batches = request.app.state.batches
    found = await batches.file_page(
        caller().owner, limit=limit + 1, after=after, purpose=purpose, descending=order == "desc"
    )
    shown = [file_object(record) for record in found[:limit]]
    return FileList(data=shown, first_id=_end(shown, 0), last_id=_end(shown, -1), has_more=len(found) > limit)


@router.get("/v1/files/{file_id}", response_model=FileObject)
async def get_file(file_id: str, request: Request) -> Any:
    """What is known of a file."""
    batches: Batches = request.app.state.batches
    return file_object(await batches.file(caller().owner, file_id))


@router.get("/v1/files/{file_id}/content", responses=CONTENT, response_class=Response)
async def get_content(file_id: str, request: Request) -> Response:
    """The file itself."""
    batches: Batches = request.app.state.batches
    file = await batches.file(caller().owner, file_id)
    return StreamingResponse(
        batches.files.chunks(file.id),
        media_type="application/octet-stream",
        headers={"content-length": str(file.bytes)},
    )


@router.delete("/v1/files/{file_id}", response_model=FileDeleted)
async def delete_file(file_id: str, request: Request) -> Any:
    """Delete a file. A batch that is worked on has no need of its input file any more."""
    batches: Batches = request.app.state.batches
    await batches.delete_file(caller().owner, file_id)
    return FileDeleted(id=file_id, deleted=True)


def file_object(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=int(record.created),
        expires_at=None if record.expires is None else int(record.expires),
        filename=record.filename,
        purpose="batch" if record.purpose == "batch" else "batch_output",
    )


def _end(shown: Sequence[FileObject], place: int) -> str | None:
    return shown[place].id if shown else None
