"""Files and batches of a server, as its API gives them: owners, limits, refusals."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

from app.api.multipart import SEND_FORM, Part
from app.api.render import dumps
from app.batch.worker import BatchWorker
from app.errors import BadRequest, NotFound, TooLarge
from app.runtime import Runtime
from app.schemas_batch import LONGEST_EXPIRY_S, SHORTEST_EXPIRY_S, BatchRequest
from app.settings import Settings
from app.store.batches import BatchRecord, BatchStore
from app.store.files import FileRecord, FileStore, FileWriter, NoRoom
from app.store.store import Store
from app.telemetry import Telemetry

LONGEST_FIELD = 1000
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
CANCELLABLE = ("validating", "in_progress", "finalizing", "cancelling", "cancelled")
UPLOAD_OVERHEAD = 100_000
"""Bytes of a form beside its file."""


class Batches:
    """`store` is None on a server that keeps nothing: it has no files and no batches."""

    def __init__(
        self, settings: Settings, store: Store | None, runtime: Runtime, telemetry: Telemetry
    ) -> None:
        self.settings, self.store = settings, store
        self.worker = BatchWorker(settings, store, runtime, telemetry) if store else None
        self._files = FileStore(store.database) if store else None
        self._batches = BatchStore(store.database) if store else None

    def start(self) -> None:
        if self.worker:
            self.worker.start()

    async def stop(self) -> None:
        if self.worker:
            await self.worker.stop()

    @property
    def files(self) -> FileStore:
        """Raises `NotFound` on a server that keeps nothing."""
        if self._files is None:
            raise NotFound(
                "This server keeps no files (database: none): start it with --database to have them.",
                code="file_not_found",
            )
        return self._files

    @property
    def batches(self) -> BatchStore:
        """Raises `NotFound` on a server that keeps nothing."""
        if self._batches is None:
            raise NotFound(
                "This server keeps no batches (database: none): start it with --database to have them.",
                code="batch_not_found",
            )
        return self._batches

    async def upload(
        self, owner: str | None, parts: AsyncGenerator[tuple[Part, bytes], None]
    ) -> FileRecord:
        """Keep the file of a form, written as it arrives. Raises `BadRequest` and `TooLarge`."""
        files, form = self.files, _Form()
        largest, most = self.settings.max_file_bytes, self.settings.max_files_bytes_per_key or None
        async with files.database.answering():
            room = largest if most is None else most - await files.total(owner)
        async with files.database.answering(long=True), AsyncExitStack() as stack:
            writer: FileWriter | None = None
            async for part, data in parts:
                if form.add(part, data):
                    continue
                if writer is None:
                    name = part.filename or "upload"
                    writer = await stack.enter_async_context(files.new(owner, "batch", name))
                size = writer.bytes + len(data)
                if size > largest:
                    raise TooLarge(f"The file is larger than {largest} bytes. Split it.", param="file")
                if size > room:
                    raise _no_room(most)
                await writer.write(data)
            keep_s = form.check() or 86400 * self.settings.file_retention_days or None
            if writer is None:
                raise BadRequest(f"file is missing. {SEND_FORM}", param="file", code="missing_field")
            try:
                return await files.publish(writer, keep_s, most)
            except NoRoom:
                raise _no_room(most) from None

    async def file(self, owner: str | None, file_id: str) -> FileRecord:
        """Raises `NotFound`."""
        async with self.files.database.answering():
            found = await self.files.get(owner, file_id) if printable_id(file_id) else None
        if found is None:
            raise _no_file()
        return found

    async def file_page(
        self, owner: str | None, *, limit: int, after: str | None, purpose: str | None, descending: bool
    ) -> list[FileRecord]:
        """Raises `BadRequest` for an `after` that is no file."""
        async with self.files.database.answering():
            found = await self.files.page(
                owner, limit=limit, after=after, purpose=purpose, descending=descending
            )
        if found is None:
            raise BadRequest("after is not the id of a file.", param="after")
        return found

    async def delete_file(self, owner: str | None, file_id: str) -> None:
        """Raises `NotFound`."""
        async with self.files.database.answering():
            known = printable_id(file_id) and await self.files.delete(owner, file_id)
        if not known:
            raise _no_file()

    async def create(self, owner: str | None, body: BatchRequest) -> BatchRecord:
        """A batch, to be read and worked on. Raises `BadRequest` where its file is not one for it."""
        batches, now = self.batches, time.time()
        async with batches.database.answering():
            known = printable_id(body.input_file_id)
            file = await self.files.get(owner, body.input_file_id) if known else None
            if file is None or file.purpose != "batch":
                message = (
                    "There is no file of this id."
                    if file is None
                    else "This file is no input of a batch: upload one with purpose batch."
                )
                raise BadRequest(message, param="input_file_id", code="invalid_input_file")
            expiry = body.output_expires_after
            record = BatchRecord(
                id=f"batch_{uuid.uuid4().hex}",
                owner=owner,
                endpoint=body.endpoint,
                input_file_id=file.id,
                completion_window=body.completion_window,
                status="validating",
                created=now,
                expires=now + 3600 * int(body.completion_window[:-1]),
                metadata=None if body.metadata is None else dumps(body.metadata),
                output_expires_s=None if expiry is None else expiry.seconds,
            )
            await batches.add(record)
        assert self.worker is not None
        self.worker.wake()
        return record

    async def batch(self, owner: str | None, batch_id: str) -> BatchRecord:
        """Raises `NotFound`."""
        async with self.batches.database.answering():
            found = await self.batches.get(owner, batch_id) if printable_id(batch_id) else None
        if found is None:
            raise NotFound("There is no batch of this id.", param="batch_id", code="batch_not_found")
        return found

    async def batch_page(self, owner: str | None, limit: int, after: str | None) -> list[BatchRecord]:
        """Raises `BadRequest` for an `after` that is no batch."""
        async with self.batches.database.answering():
            found = await self.batches.page(owner, limit, after)
        if found is None:
            raise BadRequest("after is not the id of a batch.", param="after")
        return found

    async def cancel(self, owner: str | None, batch_id: str) -> BatchRecord:
        """Begin to cancel a batch. Raises `NotFound`, and `BadRequest` for one that has ended otherwise."""
        found = await self.batch(owner, batch_id)
        if found.status not in CANCELLABLE:
            raise BadRequest(
                f"Cannot cancel a batch with status {found.status!r}.",
                param="batch_id",
                code="batch_has_ended",
            )
        async with self.batches.database.answering():
            await self.batches.cancel(owner, batch_id)
        assert self.worker is not None
        self.worker.drop(batch_id)
        return await self.batch(owner, batch_id)


class _Form:
    """The fields of an upload beside its file."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.file: Part | None = None

    def add(self, part: Part, data: bytes) -> bool:
        """Whether this piece is a field's. Raises `BadRequest` for one that is not known."""
        if part.name == "file" and self.file in (None, part):
            self.file = part
            return False
        if part.name not in FIELDS:
            raise BadRequest(
                f"The form holds a field that is not known, or two files. {SEND_FORM}",
                param=None if part.name == "file" else part.name.encode("ascii", "replace").decode(),
                code="unknown_field",
            )
        self.fields[part.name] = self.fields.get(part.name, b"") + data
        if len(self.fields[part.name]) > LONGEST_FIELD:
            raise BadRequest(f"{part.name} is too long.", param=part.name)
        return True

    def check(self) -> int | None:
        """How long the file is to be kept, in seconds, where the form says it. Raises `BadRequest`."""
        purpose = self.fields.get("purpose")
        if purpose is None:
            raise BadRequest(f"purpose is missing. {SEND_FORM}", param="purpose", code="missing_field")
        if purpose != b"batch":
            raise BadRequest("purpose: only batch is known here.", param="purpose")
        anchor, seconds = (self.fields.get(name) for name in FIELDS[1:])
        if anchor is None and seconds is None:
            return None
        if anchor != b"created_at":
            raise BadRequest("expires_after[anchor] must be created_at.", param="expires_after")
        bounds = f"from {SHORTEST_EXPIRY_S} to {LONGEST_EXPIRY_S}"
        given = int(seconds) if seconds and len(seconds) < 9 and seconds.isdigit() else 0
        if not SHORTEST_EXPIRY_S <= given <= LONGEST_EXPIRY_S:
            raise BadRequest(f"expires_after[seconds] must be a number {bounds}.", param="expires_after")
        return given


def printable_id(text: str) -> bool:
    """Whether an id that a client gives can be one: a database takes no NUL and no half of a surrogate
    pair."""
    return text.isascii() and text.isprintable() and len(text) <= 64


def _no_room(most: int | None) -> TooLarge:
    return TooLarge(
        f"With this file yours would have more than {most} bytes together, outputs of batches too. Delete"
        " some (DELETE /v1/files/{id}), or wait until they expire.",
        param="file",
        code="files_full",
    )


def _no_file() -> NotFound:
    return NotFound("There is no file of this id.", param="file_id", code="file_not_found")
