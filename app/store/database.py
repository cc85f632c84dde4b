"""The database behind the store: SQLite or PostgreSQL by URL, its schema, its transactions."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import Overloaded, StoreError
from app.store.tables import HEAD

log = logging.getLogger(__name__)
MIGRATIONS = Path(__file__).parent / "migrations"
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
UPGRADE = "pit db upgrade"
WAL_PAGES = 16_000
"""Pages of SQLite's log (64 MB) at which a writer empties it. It finds little to do: see `checkpoint`."""
# For the transaction alone, and only where nothing is awaited: a stricter setting stays.
COMMIT_TO_DISK = text(
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
T = TypeVar("T")


class Database:
    """One database. Connects when it is first used."""

    def __init__(self, url: str, timeout_s: float = 2.0) -> None:
        """`timeout_s` bounds every wait for the database. Raises `StoreError` for a URL that cannot be
        used."""
        self.url, self.timeout_s = parse_url(url), timeout_s
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.writes = 0
        """Transactions that have written."""
        try:
            self.engine = self._engine()
        except ImportError:
            raise StoreError(
                f"The database {self.name} needs the driver asyncpg: pip install 'pit-serve[postgres]'."
            ) from None

    @property
    def name(self) -> str:
        """The URL without driver and password."""
        plain = self.url.set(drivername=self.url.get_backend_name())
        return plain.render_as_string(hide_password=True)

    def _engine(self) -> AsyncEngine:
        if self.is_sqlite:
            engine = create_async_engine(self.url, hide_parameters=True)
            self._listen(engine.sync_engine)
            self._writing, self._durable = self._sync_engine(), self._sync_engine()
            event.listen(self._durable, "connect", _sync_every_commit)
            self._thread = ThreadPoolExecutor(1, "store")
            return engine
        arguments = {
            "timeout": self.timeout_s,
            "command_timeout": self.timeout_s,
            "server_settings": {"application_name": "pit-serve"},
        }
        return create_async_engine(
            self.url, hide_parameters=True, pool_pre_ping=True, pool_timeout=self.timeout_s,
            connect_args=arguments,
        )  # fmt: skip

    def _sync_engine(self) -> Engine:
        engine = create_engine(self.url.set(drivername="sqlite"), hide_parameters=True)
        self._listen(engine)
        return engine

    def _listen(self, engine: Engine) -> None:
        event.listen(engine, "connect", self._prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        # Transactions are begun by `_begin_sqlite`: the driver would begin them too late, and none for DDL.
        connection.isolation_level = None
        cursor = connection.cursor()
        # The wait for a lock ends before the writer's own deadline, so that the writer can say why.
        for pragma in (
            f"busy_timeout = {int(500 * self.timeout_s)}",
            "journal_mode = WAL",
            "synchronous = NORMAL",  # in WAL mode safe against the end of the process
            "foreign_keys = ON",
            f"wal_autocheckpoint = {WAL_PAGES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def is_missing(self) -> bool:
        """Whether this is an SQLite file that does not exist: connecting would make it."""
        return self.is_sqlite and not Path(self.url.database or "").exists()

    async def checkpoint(self) -> None:
        """Move what SQLite's log holds into the database's file, beside the writer: it would do it itself in
        the middle of a write, and whoever waits for that would wait for the disk too."""

        def work() -> None:
            with contextlib.closing(sqlite3.connect(self.url.database or "", timeout=0)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

        if self.is_sqlite and not self.is_missing():
            await asyncio.to_thread(work)

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection, None]:
        """A connection that reads one state of the database."""
        async with self.engine.connect() as connection:
            await connection.execution_options(reading=True)
            yield connection

    async def write(self, work: Callable[[Connection], T], *, durable: bool = False) -> T:
        """Call `work` with a connection in a transaction, which is committed at its end.

        With `durable` the commit is on the disk when this returns, whatever the database is set to, and a
        power cut does not undo it; otherwise it only outlives this process.

        In SQLite all of it is one errand of one thread: through the asynchronous driver every statement
        would be several, and a run four times as dear.
        """
        self.writes += 1
        if not self.is_sqlite:
            async with self.engine.begin() as connection:
                if durable:
                    await connection.execute(COMMIT_TO_DISK)
                return await connection.run_sync(work)

        def errand() -> T:
            with (self._durable if durable else self._writing).begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, errand)

    @asynccontextmanager
    async def answering(self, *, long: bool = False) -> AsyncGenerator[None, None]:
        """Raises `Overloaded` where the database does not answer in the body, which has `timeout_s` in all;
        with `long` it may take longer, and each statement has its own."""
        try:
            async with asyncio.timeout(None if long else self.timeout_s):
                yield
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("the database does not answer: %s", reason(error))
            raise Overloaded(
                "The database does not answer. Try again in some seconds.", code="store_unavailable"
            ) from None

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    async def open(self) -> None:
        """Make the database fit for use: an SQLite file is created and migrated here; PostgreSQL is only
        looked at.

        Raises `StoreError`. No connection stays open: engines are forked later, and must not inherit one.
        """
        try:
            if self.is_sqlite:
                _make_file(self.url)
            revision = await self.revision()
            if revision != HEAD and self.is_sqlite:
                await self.upgrade()
            elif revision != HEAD:
                raise StoreError(
                    f"The schema of {self.name} is at revision {revision or 'none'}, and this version needs"
                    f" {HEAD}. {self._advice(revision)}"
                )
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise StoreError(
                f"The database {self.name} cannot be used ({reason(error)}). Name another with --database,"
                " or keep nothing: --database none."
            ) from None
        finally:
            await self.disconnect()

    def _advice(self, revision: str | None) -> str:
        if revision is not None and revision > HEAD:
            return "A newer version of pit-serve has made it: use that one."
        return f"Run: {UPGRADE} --database {self.name}"

    async def revision(self) -> str | None:
        """The schema's revision; None for an empty database."""
        async with self.reading() as connection:
            if not await connection.run_sync(lambda c: inspect(c).has_table("alembic_version")):
                return None
            found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
            return None if found is None else str(found)

    async def upgrade(self, target: str = "head") -> None:
        """Migrate, in one transaction. Raises `StoreError` for a schema that is newer than this program."""
        revision = await self.revision()
        if revision is not None and revision > HEAD:
            raise StoreError(
                f"The schema of {self.name} is at revision {revision}, and this version knows {HEAD} at most."
                f" {self._advice(revision)}"
            )
        await self.write(lambda connection: _migrate(connection, target))

    async def disconnect(self) -> None:
        """Close the connections that nobody uses; the next use opens new ones."""
        await self.engine.dispose()
        if self.is_sqlite:
            for engine in (self._writing, self._durable):
                await asyncio.get_running_loop().run_in_executor(self._thread, engine.dispose)

    async def close(self) -> None:
        await self.disconnect()
        if self.is_sqlite:
            self._thread.shutdown(wait=False)


async def upgrade_database(url: str) -> str:
    """Migrate the database of this URL; say what was done. Raises `StoreError`."""
    if url == "none":
        raise StoreError("setting 'database' is none: there is nothing to upgrade. Name one with --database.")
    # A migration may take long: no deadline.
    database = Database(url, timeout_s=3600)
    try:
        if database.is_sqlite:
            _make_file(database.url)
        before = await database.revision()
        await database.upgrade()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise StoreError(f"{database.name} cannot be upgraded ({reason(error)}).") from None
    finally:
        await database.close()
    what = f"is at revision {HEAD}" if before == HEAD else f"upgraded from {before or 'empty'} to {HEAD}"
    return f"{database.name} {what}"


def parse_url(url: str) -> URL:
    """The URL with the driver that is used. Raises `StoreError`."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    backend = parsed.get_backend_name() if parsed else ""
    if parsed is None or backend not in DRIVERS:
        raise StoreError(
            "setting 'database' must be sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME, or none to keep"
            " nothing."
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("setting 'database' is SQLite in memory: name a file, or say none to keep nothing.")
    return parsed.set(drivername=DRIVERS[backend])


def reason(error: BaseException) -> str:
    """What a database error was, without its text, which may hold data."""
    original = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(original, "sqlite_errorname", None) or getattr(original, "sqlstate", None)
    if isinstance(error, OSError):
        code = error.strerror
    return type(original or error).__name__ + (f", {code}" if code else "")


def _make_file(url: URL) -> None:
    """The file and its directory, readable for nobody else: prompts are private."""
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600, exist_ok=True)


def _sync_every_commit(connection: Any, _record: Any) -> None:
    # In WAL mode FULL syncs the log at each commit, NORMAL only at a checkpoint. For macOS: fsync alone does
    # not reach its disks.
    cursor = connection.cursor()
    for pragma in ("synchronous = FULL", "fullfsync = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at the start: upgrading a reader's lock later can fail at once.
    reads = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(connection: Connection, target: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, target)


