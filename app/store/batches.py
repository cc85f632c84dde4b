"""Batches as the API makes and shows them."""

import time
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, exists, func, insert, select, update

from app.store import paging
from app.store.database import Database
from app.store.tables import batch_items, batches

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled", "failed"
]
SWEPT_AT_ONCE = 1000
"""Items that are deleted in one transaction."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch. Times are seconds since the epoch, `metadata` and `errors` JSON text; `ended` is when its
    last status began."""

    id: str
    owner: str | None
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created: float
    expires: float
    metadata: str | None = None
    errors: str | None = None
    output_expires_s: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress: float | None = None
    finalizing: float | None = None
    cancelling: float | None = None
    ended: float | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0


RECORD = [batches.c[name] for name in BatchRecord.__dataclass_fields__]


class BatchStore:
    """The batches of all owners; None is the owner on a server without keys."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, record: BatchRecord) -> None:
        row = {name: getattr(record, name) for name in BatchRecord.__dataclass_fields__}
        await self.database.write(lambda connection: connection.execute(insert(batches), row))

    async def get(self, owner: str | None, batch_id: str) -> BatchRecord | None:
        """A batch of this owner."""
        wanted = select(*RECORD).where(batches.c.owner == owner, batches.c.id == batch_id)
        async with self.database.reading() as connection:
            row = (await connection.execute(wanted)).first()
        return None if row is None else BatchRecord(**row._mapping)

    async def page(self, owner: str | None, limit: int, after: str | None) -> list[BatchRecord] | None:
        """The latest batches of this owner, or those before the batch `after`. None: there is no such."""
        mine = batches.c.owner == owner
        async with self.database.reading() as connection:
            found = await paging.page(connection, select(*RECORD), batches, mine, limit=limit, after=after)
        return None if found is None else [BatchRecord(**row._mapping) for row in found]

    async def cancel(self, owner: str | None, batch_id: str) -> None:
        """Begin to cancel a batch that is read or worked on; another stays as it is."""
        wanted = (
            update(batches)
            .where(batches.c.owner == owner, batches.c.id == batch_id)
            .where(batches.c.status.in_(("validating", "in_progress")))
            .values(status="cancelling", cancelling=time.time())
        )
        await self.database.write(lambda connection: connection.execute(wanted))

    async def waiting(self) -> int:
        """Items of all batches in progress that have no result yet."""
        left = func.sum(batches.c.total - batches.c.completed - batches.c.failed)
        wanted = select(func.coalesce(left, 0)).where(batches.c.status == "in_progress")
        async with self.database.reading() as connection:
            return int(await connection.scalar(wanted) or 0)

    async def expire(self) -> None:
        """End the work on batches whose window is over."""
        now = time.time()
        over = (batches.c.status == "in_progress", batches.c.expires < now)
        async with self.database.reading() as connection:
            if await connection.scalar(select(batches.c.id).where(*over).limit(1)) is None:
                return
        ended = update(batches).where(*over).values(status="finalizing", finalizing=now)
        await self.database.write(lambda connection: connection.execute(ended))

    async def sweep(self) -> int:
        """Delete items of batches that have ended, whose results are in files; how many."""
        key = batch_items.c
        has_items = exists().where(key.batch_id == batches.c.id)
        over = select(batches.c.id).where(batches.c.ended.is_not(None), has_items).limit(1)
        async with self.database.reading() as connection:
            batch_id = await connection.scalar(over)
            if batch_id is None:
                return 0
            of_it = key.batch_id == batch_id
            lines = select(key.line).where(of_it).order_by(key.line).limit(SWEPT_AT_ONCE)
            last = (await connection.scalars(lines)).all()[-1]
        gone = delete(batch_items).where(of_it, key.line <= last)
        return int(await self.database.write(lambda connection: connection.execute(gone).rowcount))

    async def prune(self, max_age_s: float | None) -> None:
        """Delete batches that ended longer ago; None: none."""
        if max_age_s is None:
            return
        old = batches.c.ended < time.time() - max_age_s
        async with self.database.reading() as connection:
            if await connection.scalar(select(batches.c.id).where(old).limit(1)) is None:
                return
        await self.database.write(lambda connection: connection.execute(delete(batches).where(old)))
