"""What the store does in the background: say that this server lives, hear of cancellations, end the runs of
servers that died, delete what is old."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import Connection, delete, func, insert, literal, select, update

from app.errors import AppError
from app.store.database import Database, reason
from app.store.tables import run_events, runs
from app.store.writer import OUTAGES
from app.telemetry import log_failure

log = logging.getLogger(__name__)
TURN_S = 2.0
IDLE_TURNS = 5
"""Where this server has written nothing since, only every so many turns are taken: the rest can wait."""
STALE_S = 60.0
"""A running run whose server said nothing for this long is over. Clocks of servers may differ by less."""
PRUNE_RUNS = 500
PRUNE_BYTES = 10_000_000
"""Runs, and bytes of runs, that one turn deletes at most (but always one run): a writer waits meanwhile."""
ABANDONED = AppError("The server that ran this stopped before the run ended.", code="server_stopped")


class Upkeep:
    """Turns of `TURN_S` seconds. `max_age_s` and `max_bytes` None: no limit."""

    def __init__(
        self,
        database: Database,
        server: str,
        on_cancel: Callable[[str], None],
        max_age_s: float | None,
        max_bytes: float | None,
    ) -> None:
        self.database, self.server, self.on_cancel = database, server, on_cancel
        self.max_age_s, self.max_bytes = max_age_s, max_bytes
        self.also: list[Callable[[], Awaitable[object]]] = []
        """What else is to be done in every turn."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self) -> None:
        seen, idle = -1, 0
        while True:
            await asyncio.sleep(TURN_S)
            idle = 0 if self.database.writes != seen else idle + 1
            if idle % IDLE_TURNS:
                continue
            seen = self.database.writes
            try:
                async with asyncio.timeout(10 * self.database.timeout_s):
                    await self.turn()
            except OUTAGES as error:
                log.info("no upkeep of the store: %s", reason(error))
            except Exception as error:
                log_failure("upkeep of the store", error)

    async def turn(self) -> None:
        """Everything once. Pruning goes on in the next turn where this one did not delete all."""
        await self.report_life()
        await self.end_abandoned()
        await self.prune()
        for work in self.also:
            await work()
        await self.database.checkpoint()

    async def report_life(self) -> None:
        """Mark this server's runs as alive, and cancel those whose cancellation another server was asked
        for."""
        mine = (runs.c.server == self.server, runs.c.state == "running")
        async with self.database.reading() as connection:
            found = (await connection.execute(select(runs.c.id, runs.c.cancel_requested).where(*mine))).all()
        if not found:
            return
        alive = update(runs).where(*mine).values(alive=time.time())
        await self.database.write(lambda connection: connection.execute(alive))
        for run_id, cancel_requested in found:
            if cancel_requested:
                self.on_cancel(run_id)

    async def end_abandoned(self) -> None:
        """A run that no server runs any more has failed, and its followers are told."""
        stale = (
            runs.c.state == "running",
            runs.c.server != self.server,
            runs.c.alive < time.time() - STALE_S,
        )
        async with self.database.reading() as connection:
            if not await connection.scalar(select(runs.c.id).where(*stale).limit(1)):
                return
        error = json.dumps(ABANDONED.body()["error"], separators=(",", ":"))
        values = {"state": "failed", "finished": time.time(), "error": error}
        data = f'{{"type":"run.failed","error":{error}}}'

        def end(connection: Connection) -> None:
            ended = connection.scalars(update(runs).where(*stale).values(values).returning(runs.c.id))
            for run_id in ended.all():
                last = func.coalesce(func.max(run_events.c.number), 0) + 1
                event = select(literal(run_id), last, literal(data))
                event = event.where(run_events.c.run_id == run_id)
                connection.execute(insert(run_events).from_select(run_events.columns.keys(), event))

        await self.database.write(end)

    async def prune(self) -> int:
        """Delete the oldest runs that are past their age or beyond the size, some of them. Returns how
        many."""
        async with self.database.reading() as connection:
            total = float(await connection.scalar(select(func.coalesce(func.sum(runs.c.bytes), 0))) or 0)
            oldest = await connection.execute(
                select(runs.c.id, runs.c.finished, runs.c.bytes)
                .where(runs.c.finished.is_not(None))
                .order_by(runs.c.finished)
                .limit(PRUNE_RUNS)
            )
            candidates = oldest.all()
        doomed: list[str] = []
        freed, now = 0, time.time()
        for run_id, finished, size in candidates:
            too_old = self.max_age_s is not None and finished < now - self.max_age_s
            too_much = self.max_bytes is not None and total - freed > self.max_bytes
            if not (too_old or too_much) or (doomed and freed + size > PRUNE_BYTES):
                break
            doomed.append(run_id)
            freed += size
        if doomed:
            gone = delete(runs).where(runs.c.id.in_(doomed))
            await self.database.write(lambda connection: connection.execute(gone))
            log.info("deleted %d stored runs (%d bytes)", len(doomed), freed)
        return len(doomed)
