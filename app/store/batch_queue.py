"""The queue of batches: workers of all servers take items from it, and batches to read and to end.

What is taken belongs to whoever has its lease. All that a worker writes names the claim by which it was
taken, and does nothing once somebody else has taken it: so each result is written once, also where a server
was believed dead and was not.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, insert, select, update

from app.store.batches import RECORD, BatchRecord
from app.store.database import Database
from app.store.tables import batch_items, batches


@dataclass(frozen=True, slots=True)
class Item:
    """An item that was taken. `worker` names the claim; `attempts` counts how often it was taken since it
    last got further, this time too."""

    batch_id: str
    line: int
    custom_id: str
    body: str
    attempts: int
    progress: str | None
    owner: str | None
    endpoint: str
    worker: str


@dataclass(frozen=True, slots=True)
class ItemRow:
    """An item as a file has it: `output` is None where it was not executed."""

    line: int
    custom_id: str
    succeeded: bool | None
    output: str | None


class NotOurs(Exception):
    """Somebody else has taken it meanwhile, or the batch is no longer worked on."""


class BatchQueue:
    """What the workers do."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def take_batch(self, server: str, lease_s: float) -> tuple[BatchRecord, str] | None:
        """A batch whose input is to be read or whose output is to be written, and the name of the claim."""
        now, worker = time.time(), _claim(server)
        due = and_(
            batches.c.status.in_(("validating", "finalizing", "cancelling")), batches.c.lease < now
        )
        first = select(batches.c.id).where(due).order_by(batches.c.created).limit(1)
        async with self.database.reading() as connection:
            if await connection.scalar(first) is None:
                return None

        def work(connection: Connection) -> BatchRecord | None:
            found = connection.scalar(first.with_for_update(skip_locked=True))
            values = {"worker": worker, "lease": now + lease_s}
            taken = update(batches).where(batches.c.id == found).values(values).returning(*RECORD)
            row = None if found is None else connection.execute(taken).first()
            return None if row is None else BatchRecord(**row._mapping)

        record = await self.database.write(work)
        return None if record is None else (record, worker)

    async def add_items(
        self, batch_id: str, worker: str, rows: Sequence[dict[str, Any]], lease_s: float
    ) -> bool:
        """Add `rows` (line, custom_id, body) to a batch that is being read. False: the claim is lost."""
        fixed = {"batch_id": batch_id, "lease": 0.0, "attempts": 0}

        def work(connection: Connection) -> bool:
            if not connection.execute(_held(batch_id, worker).values(lease=time.time() + lease_s)).rowcount:
                return False
            if rows:
                connection.execute(insert(batch_items), [row | fixed for row in rows])
            return True

        return await self.database.write(work)

    async def clear_items(self, batch_id: str, worker: str) -> bool:
        """Delete what an earlier reader, which died, has added. False: the claim is lost."""

        def work(connection: Connection) -> bool:
            gone = delete(batch_items).where(batch_items.c.batch_id == batch_id)
            held = exists().where(batches.c.id == batch_id, batches.c.worker == worker)
            connection.execute(gone.where(held))
            return bool(connection.scalar(select(held)))

        return await self.database.write(work)

    async def begin(self, batch_id: str, worker: str, total: int) -> None:
        """All items are there: they may be worked on, unless the batch was cancelled meanwhile."""
        values = {"status": "in_progress", "in_progress": time.time(), "total": total}

        def work(connection: Connection) -> None:
            connection.execute(
                _held(batch_id, worker).where(batches.c.status == "validating").values(values)
            )
            connection.execute(_held(batch_id, worker).values(lease=0.0))

        await self.database.write(work)

    async def fail(self, batch_id: str, worker: str, errors: str) -> bool:
        """The input file is refused; whether the claim still held."""
        values = {"status": "failed", "ended": time.time(), "errors": errors}
        failed = _held(batch_id, worker).where(batches.c.status == "validating").values(values)
        return bool(await self.database.write(lambda connection: connection.execute(failed).rowcount))

    async def extend_batch(self, batch_id: str, worker: str, lease_s: float) -> bool:
        """Keep a batch for `lease_s` seconds more. False: the claim is lost."""
        longer = _held(batch_id, worker).values(lease=time.time() + lease_s)
        return bool(await self.database.write(lambda connection: connection.execute(longer).rowcount))

    async def release_batch(self, batch_id: str, worker: str) -> None:
        """Let another server go on with it."""
        free = _held(batch_id, worker).values(lease=0.0)
        await self.database.write(lambda connection: connection.execute(free))

    async def rows(self, batch_id: str, after: int, limit: int) -> list[ItemRow]:
        """Items of the lines after this one, in order."""
        wanted = select(*(batch_items.c[name] for name in ItemRow.__dataclass_fields__))
        wanted = wanted.where(batch_items.c.batch_id == batch_id, batch_items.c.line > after)
        async with self.database.reading() as connection:
            found = await connection.execute(wanted.order_by(batch_items.c.line).limit(limit))
            return [ItemRow(**row._mapping) for row in found]

    async def active(self) -> list[str]:
        """Batches whose items may be worked on, the oldest first."""
        wanted = select(batches.c.id).where(batches.c.status == "in_progress")
        async with self.database.reading() as connection:
            return list(await connection.scalars(wanted.order_by(batches.c.created)))

    async def take_items(self, batch_id: str, limit: int, server: str, lease_s: float) -> list[Item]:
        """Items of this batch that nobody has, at most `limit`: those that were never taken come first."""
        now, worker, key = time.time(), _claim(server), batch_items.c
        free = (key.batch_id == batch_id, key.lease < now)
        wanted = select(key.line).where(*free).order_by(key.lease, key.line).limit(limit)
        async with self.database.reading() as connection:
            if await connection.scalar(wanted.limit(1)) is None:
                return []

        def work(connection: Connection) -> list[Item]:
            lines = connection.scalars(wanted.with_for_update(skip_locked=True)).all()
            mine = (key.batch_id == batch_id, key.line.in_(lines))
            values = {"worker": worker, "lease": now + lease_s, "attempts": key.attempts + 1}
            connection.execute(update(batch_items).where(*mine).values(values))
            columns = [key[name] for name in Item.__dataclass_fields__ if name in key]
            taken = select(*columns, batches.c.owner, batches.c.endpoint).join_from(batch_items, batches)
            return [Item(**row._mapping) for row in connection.execute(taken.where(*mine).order_by(key.line))]

        return await self.database.write(work)

    async def extend(self, items: Sequence[Item], lease_s: float) -> list[Item]:
        """Keep these items for `lease_s` seconds more; those that are kept. The others were taken by somebody
        else, or their batch is no longer worked on."""
        until = time.time() + lease_s

        def work(connection: Connection) -> list[Item]:
            return [
                item
                for item in items
                if connection.execute(_mine(item).where(_in_progress(item)).values(lease=until)).rowcount
            ]

        return await self.database.write(work)

    async def save(self, item: Item, progress: str) -> bool:
        """Keep how far an item has come. False: it is not ours any more."""
        saved = _mine(item).values(progress=progress, attempts=0)
        return bool(await self.database.write(lambda connection: connection.execute(saved).rowcount))

    async def release(self, item: Item, delay_s: float, attempts: int) -> None:
        """Give an item back, to be taken after `delay_s` seconds."""
        free = time.time() + delay_s if delay_s else 0.0
        given = _mine(item).values(lease=free, worker=None, attempts=attempts)
        await self.database.write(lambda connection: connection.execute(given))

    async def finish(self, item: Item, succeeded: bool, output: str) -> bool:
        """Write an item's result, once. False: it is not ours any more, or its batch is no longer worked on.
        The last one ends the work on the batch."""
        done = _mine(item).values(
            succeeded=succeeded, output=output, body=None, progress=None, lease=None, worker=None
        )
        counter = batches.c.completed if succeeded else batches.c.failed
        counted = (
            update(batches)
            .where(batches.c.id == item.batch_id, batches.c.status == "in_progress")
            .values({counter: counter + 1})
        )
        all_done = batches.c.completed + batches.c.failed == batches.c.total
        ended = (
            update(batches)
            .where(batches.c.id == item.batch_id, batches.c.status == "in_progress", all_done)
            .values(status="finalizing", finalizing=time.time())
        )

        def work(connection: Connection) -> None:
            # The batch's row first: it is what everybody who ends a batch changes.
            for needed in (counted, done):
                if not connection.execute(needed).rowcount:
                    raise NotOurs
            connection.execute(ended)

        try:
            await self.database.write(work)
        except NotOurs:
            return False
        return True


def end(connection: Connection, batch_id: str, worker: str, values: dict[str, Any]) -> bool:
    """End a batch, as a part of a transaction. False: the claim is lost."""
    return bool(connection.execute(_held(batch_id, worker).values(ended=time.time(), **values)).rowcount)


def _claim(server: str) -> str:
    return f"{server}/{secrets.token_hex(8)}"


def _held(batch_id: str, worker: str) -> Any:
    return update(batches).where(batches.c.id == batch_id, batches.c.worker == worker)


def _mine(item: Item) -> Any:
    key = batch_items.c
    place = (key.batch_id == item.batch_id, key.line == item.line)
    return update(batch_items).where(*place, key.worker == item.worker, key.lease.is_not(None))


def _in_progress(item: Item) -> Any:
    return exists().where(batches.c.id == item.batch_id, batches.c.status == "in_progress")
