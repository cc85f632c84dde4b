"""A server of fakes, reached without a socket."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from app.store.database import Database, upgrade_database
from tests.app import postgres
from tests.app.fakes import factory_of, fake_models
from tests.app.redis_server import RedisServer, redis_server

Serve = Callable[..., Any]
_numbers = count()


@pytest.fixture
async def serve() -> AsyncGenerator[Serve, None]:
    """`client = await serve(models)`: a ready server of these models; its application is `client.app`."""
    async with AsyncExitStack() as stack:

        async def start(models: Models | None = None, **settings: Any) -> httpx.AsyncClient:
            # A busy machine may let a database wait: only who tests that deadline sets one.
            settings.setdefault("store_timeout_s", 20)
            app = create_app(Settings(**settings), factory_of(models or fake_models()))
            return await stack.enter_async_context(running(app))

        yield start


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[str]:
    """The URL of a PostgreSQL of the session's own."""
    try:
        with postgres.cluster() as url:
            yield url
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_session() -> Iterator[RedisServer]:
    """A Redis of the session's own."""
    try:
        with redis_server() as server:
            yield server
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def redis(redis_session: RedisServer) -> str:
    """The URL of a Redis, empty."""
    from redis import Redis

    with Redis.from_url(redis_session.url) as client:
        client.flushall()
    return redis_session.url


async def new_postgres(cluster: str) -> str:
    """The URL of an empty database in the cluster."""
    name = f"pit_{next(_numbers)}"
    await execute(cluster, f"CREATE DATABASE {name}")
    return cluster.replace("/postgres?", f"/{name}?")


async def execute(url: str, statement: str) -> list[Any]:
    """Run one statement, and give its rows."""
    database = Database(url)
    engine = database.engine
    if not database.is_sqlite:  # CREATE DATABASE is no part of a transaction
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        async with engine.begin() as connection:
            done = await connection.exec_driver_sql(statement)
            return [tuple(row) for row in done] if done.returns_rows else []
    finally:
        await database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store: the same tests on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/pit.db"
    url = await new_postgres(request.getfixturevalue("postgres_cluster"))
    await upgrade_database(url)
    return url


class running:
    """Runs an application's lifespan around an httpx client, until its models are up or have failed."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> httpx.AsyncClient:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        await self.app.state.runtime.settled.wait()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://server")
        client.app = self.app  # type: ignore[attr-defined]
        return await self._stack.enter_async_context(client)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
