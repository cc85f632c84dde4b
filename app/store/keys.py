"""API keys in the database."""

import time
from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Row, insert, inspect, select, update
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.security import SCOPES, KeyLimits, Scope, StoredKey
from app.store.database import Database
from app.store.tables import api_keys

c = api_keys.c
COLUMNS = (
    c.id, c.owner, c.name, c.digest, c.scopes, c.requests_per_minute, c.tokens_per_minute, c.concurrency,
    c.created, c.expires, c.revoked,
)  # fmt: skip


class KeyTable:
    """The table of keys. Every method raises what the database raises."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def rows(self) -> list[Row[Any]]:
        """Every key there is, revoked ones too, as rows for `stored_keys`; none in a schema without keys."""
        try:
            async with self.database.reading() as connection:
                return list(await connection.execute(select(*COLUMNS).order_by(c.created)))
        except (OperationalError, ProgrammingError):
            async with self.database.reading() as connection:
                if await connection.run_sync(lambda found: inspect(found).has_table(api_keys.name)):
                    raise
            return []

    async def add(self, key: StoredKey) -> None:
        limits = key.limits
        row = {
            "id": key.id,
            "owner": key.owner,
            "name": key.name,
            "digest": key.digest,
            "scopes": " ".join(key.scopes),
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "concurrency": limits.concurrency,
            "created": key.created,
            "expires": key.expires,
        }
        await self.database.write(lambda connection: connection.execute(insert(api_keys).values(row)))

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key; False: it is revoked, or there is none of this id."""
        active = (c.id == key_id, c.revoked.is_(None))
        wanted = update(api_keys).where(*active).values(revoked=time.time())
        done = await self.database.write(lambda connection: connection.execute(wanted).rowcount)
        return bool(done)


def stored_keys(rows: Iterable[Row[Any]]) -> list[StoredKey]:
    """The rows as keys. A scope that this version does not know grants nothing."""
    found = []
    for key_id, owner, name, digest, scopes, requests, tokens, concurrency, *times in map(tuple, rows):
        known = tuple(cast(Scope, word) for word in scopes.split() if word in SCOPES)
        limits = KeyLimits(requests, tokens, concurrency)
        found.append(StoredKey(key_id, owner, name, digest, known, limits, *times))
    return found
