"""The store of runs: opened at start, written by one task, read by the endpoints."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable

from sqlalchemy import case, select, true, update

from app.errors import StoreError
from app.security import Identity
from app.settings import Settings
from app.store import paging
from app.store.answers import KeptAnswers
from app.store.database import Database
from app.store.feedback import FeedbackTable
from app.store.records import RunRecord
from app.store.tables import run_events, runs
from app.store.upkeep import Upkeep
from app.store.writer import RunWriter
from app.telemetry import Telemetry

log = logging.getLogger(__name__)
RECHECK_S = 2.0
SUMMARY = (
    runs.c.id, runs.c.created, runs.c.owner, runs.c.state, runs.c.finished, runs.c.stop_reason,
    runs.c.iterations, runs.c.excerpt, runs.c.improved, runs.c.win_probability,
)  # fmt: skip
WHOLE = (*SUMMARY, runs.c.request, runs.c.result, runs.c.error)
# Of a run that an earlier version has stored, also what the rest of its summary is made of.
BARE = runs.c.excerpt.is_(None)
LISTED = (
    *SUMMARY,
    case((BARE, runs.c.request), else_="").label("request"),
    case((BARE, runs.c.result)).label("result"),
)


class Store:
    """`problem` is why the database cannot be used, or None."""

    def __init__(self, settings: Settings, telemetry: Telemetry, on_cancel: Callable[[str], None]) -> None:
        """`on_cancel` gets the id of a run of this server that is to be cancelled. Raises `StoreError`."""
        self.database = Database(settings.database, settings.store_timeout_s)
        server = f"{socket.gethostname()[:64]}/{os.getpid()}/{secrets.token_hex(4)}"
        self.writer = RunWriter(self.database, telemetry, server)
        self.feedback, self.answers = FeedbackTable(self.database), KeptAnswers(self.database)
        max_age_s = 86400 * settings.retention_days or None
        self.upkeep = Upkeep(
            self.database, server, on_cancel, max_age_s, 1e6 * settings.retention_mb or None
        )
        self.upkeep.also.append(self.answers.prune)
        if settings.feedback_retention_days:
            feedback_age_s = 86400 * settings.feedback_retention_days
            self.upkeep.also.append(lambda: self.feedback.prune(feedback_age_s))
        self.problem: str | None = None
        self._recheck: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Migrate an SQLite database; look whether PostgreSQL has the schema, again and again until it has.

        Raises `StoreError` where the database is SQLite: a file that cannot be used now never can.
        """
        try:
            await self.database.open()
        except StoreError as error:
            if self.database.is_sqlite:
                raise
            self.problem = str(error)
            log.warning("not ready: %s", error)
            self._recheck = asyncio.create_task(self._until_usable())

    def start(self) -> None:
        """Begin to write and to keep order. Not before the engines are forked: these must not inherit a
        connection."""
        self.writer.start()
        self.upkeep.start()

    async def _until_usable(self) -> None:
        while self.problem:
            await asyncio.sleep(RECHECK_S)
            try:
                await self.database.open()
                self.problem = None
            except StoreError as error:
                self.problem = str(error)

    async def close(self) -> None:
        """Write what is left, and close the connections."""
        if self._recheck:
            self._recheck.cancel()
            await asyncio.gather(self._recheck, return_exceptions=True)
        await self.upkeep.stop()
        await self.writer.stop()
        await self.database.close()

    async def run(self, run_id: str) -> RunRecord | None:
        """A stored run without its events."""
        async with self.database.answering(), self.database.reading() as connection:
            row = (await connection.execute(select(*WHOLE).where(runs.c.id == run_id))).first()
        return None if row is None else RunRecord(**row._mapping)

    async def events(self, run_id: str, after: int, limit: int) -> list[tuple[int, str]]:
        """Number and data of the events with greater numbers, in order: those of the next `limit` rows."""
        wanted = (
            select(run_events.c.number, run_events.c.data)
            .where(run_events.c.run_id == run_id, run_events.c.number > after)
            .order_by(run_events.c.number)
            .limit(limit)
        )
        async with self.database.answering(), self.database.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        found = []
        for last, data in rows:
            lines = data.split("\n")
            for number, line in enumerate(lines, last - len(lines) + 1):
                # Rows overlap where one was written again because its confirmation was lost.
                if number > after:
                    found.append((number, line))
                    after = number
        return found

    async def page(self, limit: int, after: str | None, viewer: Identity) -> list[RunRecord] | None:
        """The latest runs that `viewer` sees, or those before the run `after`: what a list shows of them.
        None: it sees no run `after`."""
        seen = true() if viewer.may("admin") else runs.c.owner == viewer.owner
        async with self.database.answering(), self.database.reading() as connection:
            rows = await paging.page(connection, select(*LISTED), runs, seen, limit=limit, after=after)
        if rows is None:
            return None
        found = [RunRecord(**row._mapping) for row in rows]
        for record in found:
            if record.excerpt is None:
                record.describe()
        return found

    async def request_cancel(self, run_id: str) -> None:
        """Ask the server that runs this run to cancel it. It hears of it within some seconds."""
        wanted = update(runs).where(runs.c.id == run_id).values(cancel_requested=True)
        async with self.database.answering():
            await self.database.write(lambda connection: connection.execute(wanted))
