"""Files in the database: in chunks, so that none is ever whole in memory and all servers see the same."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from app.store import paging
from app.store.database import Database
from app.store.tables import file_chunks, files

CHUNK = 256 * 1024
"""Bytes of a chunk."""
ABANDONED_S = 2 * 3600.0
"""A file that is not complete after this long is never going to be."""
DELETED_AT_ONCE = 20
"""Files that one turn of pruning deletes at most: other writers wait meanwhile."""


LOCK = text("SELECT pg_advisory_xact_lock(7310289891)")
"""One at a time: two files that are published at once would each find room for itself alone. SQLite has one
writer anyhow."""


class NoRoom(Exception):
    """The owner's files would have too many bytes."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file. Times are seconds since the epoch."""

    id: str
    owner: str | None
    created: float
    expires: float | None
    purpose: str
    filename: str
    bytes: int


_RECORD = [files.c[name] for name in FileRecord.__dataclass_fields__]


class FileWriter:
    """A file that grows. What it is given is written in chunks of `CHUNK` bytes."""

    def __init__(self, database: Database, file_id: str) -> None:
        self.database, self.id = database, file_id
        self.bytes = self._number = 0
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        self._buffer += data
        self.bytes += len(data)
        while len(self._buffer) >= CHUNK:
            await self._flush(CHUNK)

    async def _flush(self, size: int) -> None:
        row = {"file_id": self.id, "number": self._number, "data": bytes(self._buffer[:size])}
        await self.database.write(lambda connection: connection.execute(insert(file_chunks), row))
        self._number += 1
        del self._buffer[:size]

    async def finish(self) -> None:
        """Write what is left. The file is complete only once it is published."""
        if self._buffer:
            await self._flush(len(self._buffer))


class FileStore:
    """The files of all owners; None is the owner on a server without keys."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @asynccontextmanager
    async def new(self, owner: str | None, purpose: str, filename: str) -> AsyncGenerator[FileWriter, None]:
        """A file to write, which nobody sees before `publish`. Where the body fails, nothing of it stays."""
        file_id = f"file-{uuid.uuid4().hex}"
        row = {
            "id": file_id, "owner": owner, "created": time.time(), "expires": None, "purpose": purpose,
            "filename": filename, "bytes": 0, "complete": False,
        }  # fmt: skip
        await self.database.write(lambda connection: connection.execute(insert(files), row))
        try:
            yield FileWriter(self.database, file_id)
        except BaseException:
            gone = delete(files).where(files.c.id == file_id, files.c.complete.is_(False))
            await self.database.write(lambda connection: connection.execute(gone))
            raise

    async def publish(self, writer: FileWriter, keep_s: float | None, most: int | None) -> FileRecord:
        """Complete a file, which is kept for `keep_s` seconds (None: for ever). Raises `NoRoom` where its
        owner's files would have more than `most` bytes with it (None: no limit)."""
        await writer.finish()

        def work(connection: Connection) -> FileRecord:
            if not self.database.is_sqlite:
                connection.execute(LOCK)
            record = complete(connection, writer, keep_s)
            if most is not None and connection.execute(_total(record.owner)).scalar_one() > most:
                raise NoRoom
            return record

        return await self.database.write(work)

    async def total(self, owner: str | None) -> int:
        """Bytes of all files of this owner."""
        async with self.database.reading() as connection:
            return int((await connection.execute(_total(owner))).scalar_one())

    async def get(self, owner: str | None, file_id: str) -> FileRecord | None:
        """A file of this owner."""
        wanted = select(*_RECORD).where(_visible(owner), files.c.id == file_id)
        async with self.database.reading() as connection:
            row = (await connection.execute(wanted)).first()
        return None if row is None else FileRecord(**row._mapping)

    async def page(
        self, owner: str | None, *, limit: int, after: str | None, purpose: str | None, descending: bool
    ) -> list[FileRecord] | None:
        """Files of this owner in the order of their making, those behind the file `after`. None: there is no
        file `after`."""
        wanted = select(*_RECORD)
        if purpose is not None:
            wanted = wanted.where(files.c.purpose == purpose)
        async with self.database.reading() as connection:
            found = await paging.page(
                connection, wanted, files, _visible(owner), limit=limit, after=after, descending=descending
            )
        return None if found is None else [FileRecord(**row._mapping) for row in found]

    async def chunks(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content, chunk by chunk. It ends early where the file is deleted meanwhile."""
        number = 0
        while True:
            wanted = select(file_chunks.c.data).where(
                file_chunks.c.file_id == file_id, file_chunks.c.number == number
            )
            async with self.database.reading() as connection:
                data = await connection.scalar(wanted)
            if data is None:
                return
            yield data
            number += 1

    async def delete(self, owner: str | None, file_id: str) -> bool:
        """Whether there was such a file of this owner."""
        gone = delete(files).where(_visible(owner), files.c.id == file_id)
        return bool(await self.database.write(lambda connection: connection.execute(gone).rowcount))

    async def prune(self) -> int:
        """Delete some of the files whose time is over; how many."""
        now = time.time()
        abandoned = files.c.complete.is_(False) & (files.c.created < now - ABANDONED_S)
        over = select(files.c.id).where(or_(files.c.expires < now, abandoned)).limit(DELETED_AT_ONCE)
        async with self.database.reading() as connection:
            doomed: Sequence[str] = (await connection.scalars(over)).all()
        if doomed:
            gone = delete(files).where(files.c.id.in_(doomed))
            await self.database.write(lambda connection: connection.execute(gone))
        return len(doomed)


def complete(connection: Connection, writer: FileWriter, keep_s: float | None) -> FileRecord:
    """Publish a file that is finished, as a part of a transaction."""
    done = (
        update(files)
        .where(files.c.id == writer.id)
        .values(
            bytes=writer.bytes, expires=None if keep_s is None else time.time() + keep_s, complete=True
        )
        .returning(*_RECORD)
    )
    return FileRecord(**connection.execute(done).one()._mapping)


def _total(owner: str | None) -> Select[Any]:
    return select(func.coalesce(func.sum(files.c.bytes), 0)).where(_visible(owner))


def _visible(owner: str | None) -> ColumnElement[bool]:
    # An expired file is gone, though its bytes are deleted later.
    alive = or_(files.c.expires.is_(None), files.c.expires > time.time())
    return and_(files.c.owner == owner, files.c.complete.is_(True), alive)
