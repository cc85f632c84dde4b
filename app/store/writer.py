"""The one task that writes runs: what they say is collected in memory and written in batches.

A run never waits for the database, save at its end: its answer says whether it is stored, so the last write
is awaited, with a deadline. What cannot be written is said (log, metrics, `stored: false`), and of a run
that is not stored nothing stays in the database.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any

from sqlalchemy import Connection, delete
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.store.database import Database, reason
from app.store.records import RunRecord
from app.store.tables import run_events, runs
from app.telemetry import Telemetry, log_failure

log = logging.getLogger(__name__)
FLUSH_S = 0.5
"""How long the events of a running run wait to be written."""
BATCH_EVENTS = 4000
"""Events of one transaction at most."""
ROW_EVENTS = 100
"""Events of one row at most."""
RETRY_S = 0.1
MAX_PENDING = 10_000
"""Runs that are being written at most; those beyond it are not stored."""
Part = tuple[RunRecord, int, bool]
"""A record, up to which of its events it is to be written, and whether that is all of it."""
OUTAGES = (OperationalError, InterfaceError, PoolTimeout, OSError, TimeoutError)
UPDATED = (
    "state", "finished", "stop_reason", "iterations", "improved", "win_probability", "bytes", "result",
    "error",
)  # fmt: skip


class RunWriter:
    """Writes records to the database. `add` a run when it starts, `finish` it when it has ended."""

    def __init__(self, database: Database, telemetry: Telemetry, server: str) -> None:
        self.database, self.telemetry, self.server = database, telemetry, server
        self.timeout_s = database.timeout_s
        upsert = database.insert(runs)
        self._upsert = upsert.on_conflict_do_update(
            index_elements=[runs.c.id], set_={name: upsert.excluded[name] for name in UPDATED}
        )
        # A batch may be written twice, where only its confirmation was lost: the same rows once more.
        self._insert = database.insert(run_events).on_conflict_do_nothing()
        self._pending: dict[str, RunRecord] = {}
        self._unwanted: set[str] = set()
        self._wake = asyncio.Event()
        self._failing_since: float | None = None
        self._lost = 0
        self._flushed = 0.0
        """When runs that go on were last written, in the event loop's time."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Write what is left, within the deadline."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pending:
            await self._turn()
        for record in list(self._pending.values()):
            self._give_up(record)

    def add(self, record: RunRecord) -> bool:
        """Begin to write a run as it grows. False: too many wait already, and it is not going to be
        stored."""
        if len(self._pending) >= MAX_PENDING:
            self._count_lost()
            return False
        record.stored = asyncio.get_running_loop().create_future()
        self._pending[record.id] = record
        self.telemetry.store_pending.set(len(self._pending))
        return True

    async def finish(self, record: RunRecord) -> bool:
        """Write the rest of a run that has ended. True when it is in the database."""
        assert record.stored is not None
        self._wake.set()
        await asyncio.wait({record.stored}, timeout=self.timeout_s)
        if not record.stored.done():
            self._give_up(record)
        return record.stored.result()

    async def _loop(self) -> None:
        while True:
            # Between two flushes only what has ended is written: somebody waits for it.
            flush = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._flushed + FLUSH_S):
                    await self._wake.wait()
                    flush = False
            self._wake.clear()
            if flush:
                self._flushed = asyncio.get_running_loop().time()
            if not self._pending and not self._unwanted:
                continue
            if not await self._turn(flush):
                await asyncio.sleep(RETRY_S)
            if self._unwanted or any(record.finished for record in self._pending.values()):
                self._wake.set()

    async def _turn(self, flush: bool = True) -> bool:
        """Write one batch, without the runs that go on unless it is a flush. False when the database
        failed."""
        return await self._attempt(self._batch(flush), frozenset(self._unwanted))

    async def _attempt(self, batch: list[Part], unwanted: frozenset[str]) -> bool:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._write(batch, unwanted)
        except OUTAGES as error:
            self._failed(reason(error))
            return False
        except Exception as error:
            # The database is there and does not take this. One bad run must not be the end of the others.
            if len(batch) > 1:
                return all([await self._attempt([part], frozenset()) for part in batch])
            log_failure("storing a run", error)
            self._failed(type(error).__name__)
            for record, _, _ in batch:
                self._give_up(record)
            return False
        self.telemetry.store_seconds.observe(time.perf_counter() - started)
        self._recovered()
        for record, until, is_all in batch:
            record.has_row, record.written = True, until
            if is_all and record.stored and not record.stored.done():
                self._settle(record, True)
        self._unwanted -= unwanted
        return True

    def _batch(self, flush: bool) -> list[Part]:
        """What to write now. The finished come first."""
        room, batch = BATCH_EVENTS, []
        pending = self._pending.values() if flush else [r for r in self._pending.values() if r.finished]
        for record in sorted(pending, key=lambda r: r.finished is None):
            until = min(len(record.events), record.written + room)
            is_all = record.finished is not None and until == len(record.events)
            if until > record.written or is_all:
                batch.append((record, until, is_all))
                room -= until - record.written
            if not room:
                break
        return batch

    async def _write(self, batch: list[Part], unwanted: frozenset[str]) -> None:
        rows = [self._row(record, is_all) for record, _, is_all in batch if is_all or not record.has_row]
        events = [
            {"run_id": record.id, "number": last, "data": "\n".join(record.events[first:last])}
            for record, until, _ in batch
            for first, last in _spans(record.written, until)
        ]

        def work(connection: Connection) -> None:
            if rows:
                connection.execute(self._upsert, rows)
            if events:
                connection.execute(self._insert, events)
            if unwanted:
                connection.execute(delete(runs).where(runs.c.id.in_(unwanted)))

        await self.database.write(work)

    def _row(self, record: RunRecord, is_all: bool) -> dict[str, Any]:
        ended = {name: getattr(record, name) if is_all else None for name in UPDATED if name != "bytes"}
        return ended | {
            "id": record.id,
            "owner": record.owner,
            "server": self.server,
            "alive": time.time(),
            "created": record.created,
            "state": record.state if is_all else "running",
            "cancel_requested": False,
            "bytes": record.size(),
            "excerpt": record.excerpt,
            "request": record.request,
        }

    def _settle(self, record: RunRecord, stored: bool) -> None:
        assert record.stored is not None
        self._pending.pop(record.id, None)
        record.stored.set_result(stored)
        self.telemetry.store_pending.set(len(self._pending))
        if stored:
            self.telemetry.stored_runs.labels("stored").inc()
        else:
            self._count_lost()

    def _give_up(self, record: RunRecord) -> None:
        """A run that is not stored leaves nothing: what is there of it, or may be, is deleted later."""
        if len(self._unwanted) < MAX_PENDING:
            self._unwanted.add(record.id)
        self._settle(record, False)

    def _count_lost(self) -> None:
        self._lost += 1
        self.telemetry.stored_runs.labels("lost").inc()

    def _failed(self, why: str) -> None:
        self.telemetry.store_failures.inc()
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            log.warning("runs cannot be stored in %s: %s", self.database.name, why)
        elif now - self._failing_since > self.timeout_s:
            # A longer failure: answers do not wait for its end.
            for record in [r for r in self._pending.values() if r.finished is not None]:
                self._give_up(record)

    def _recovered(self) -> None:
        if self._failing_since is not None:
            log.warning("runs are stored again; %d were not", self._lost)
        self._failing_since, self._lost = None, 0


def _spans(first: int, last: int) -> list[tuple[int, int]]:
    """`first` to `last` in pieces of one row each."""
    return [(start, min(start + ROW_EVENTS, last)) for start in range(first, last, ROW_EVENTS)]
