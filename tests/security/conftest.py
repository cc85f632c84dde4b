"""A server with keys: in its database, and real ones."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.security import USUAL, Scope, new_key
from app.store.database import Database
from app.store.keys import KeyTable
from tests.app.conftest import database, postgres_cluster, serve

__all__ = ["database", "postgres_cluster", "serve"]
Make = Callable[..., Awaitable[str]]


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pit.db"


async def add_key(url: str, *scopes: Scope, expires_in: float | None = None, name: str = "test") -> str:
    """A key in this database, as `pit keys create` makes one."""
    key, stored = new_key(name, scopes or USUAL, expires_s=expires_in)
    async with opened(url) as table:
        await table.add(stored)
    return key


def unknown_key() -> str:
    """A key that no server knows."""
    return new_key("unknown")[0]


async def revoke_key(url: str, key: str) -> None:
    async with opened(url) as table:
        assert await table.revoke(id_of(key))


class opened:
    """The table of keys, through a connection of its own: another process, as far as a server can see."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    async def __aenter__(self) -> KeyTable:
        await self.database.open()
        return KeyTable(self.database)

    async def __aexit__(self, *_: object) -> None:
        await self.database.close()


def id_of(key: str) -> str:
    return key.split("_")[1]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(
    client: httpx.AsyncClient, method: str, path: str, key: str | None, **more: Any
) -> httpx.Response:
    return await client.request(method, path, headers=bearer(key) if key else {}, **more)


@pytest.fixture
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None, None]:
    """Keys are read ten times as often."""
    monkeypatch.setattr("app.keys.LOOK_S", 0.2)
    monkeypatch.setattr("app.keys.PAUSE_S", 0.02)
    yield
