"""Answers kept for an `Idempotency-Key`: who executes a request, and what it was answered.

The database decides: the one whose insert succeeds executes. An execution holds its key by a lease that it
renews; the key of a server that died can be claimed once the lease is over.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, or_, select, update

from app.store.database import Database
from app.store.tables import idempotency_keys as keys

KEPT_S = 86400.0
LEASE_S = 15.0
"""Clocks of servers may differ by less."""
PRUNE_ROWS = 500
Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    status: int
    headers: Sequence[Header]
    body: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a key. `holder` is set where it was claimed here; `answer` where there is one. With
    neither, somebody else executes the request. `fingerprint` is that of the request that has the key."""

    key: str
    fingerprint: str
    holder: str | None = None
    answer: KeptAnswer | None = None


class KeptAnswers:
    """Raises what the database raises. `key` and `fingerprint` are hashes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def claim(self, key: str, fingerprint: str) -> Claim:
        """Claim a key that is free, or say what is known of it."""
        found = await self._look(key, fingerprint)
        return found or await self._insert(key, fingerprint) or Claim(key, fingerprint)

    async def _look(self, key: str, fingerprint: str) -> Claim | None:
        """None where the key may be free."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(keys).where(keys.c.key == key))).first()
        now = time.time()
        if row is None or row.created < now - KEPT_S:
            return None
        if row.status is None:
            abandoned = row.lease < now and row.fingerprint == fingerprint
            return None if abandoned else Claim(key, row.fingerprint)
        headers = [(name, value) for name, value in json.loads(row.headers)]
        return Claim(key, row.fingerprint, answer=KeptAnswer(row.status, headers, row.body))

    async def _insert(self, key: str, fingerprint: str) -> Claim | None:
        """None where another was quicker."""
        now, holder = time.time(), uuid.uuid4().hex
        row = dict.fromkeys(("status", "headers", "body")) | {
            "key": key,
            "fingerprint": fingerprint,
            "created": now,
            "holder": holder,
            "lease": now + LEASE_S,
        }
        insert = self.database.insert(keys).values(row)
        free = or_(
            keys.c.created < now - KEPT_S,
            and_(keys.c.status.is_(None), keys.c.lease < now, keys.c.fingerprint == fingerprint),
        )
        claim = insert.on_conflict_do_update(
            index_elements=[keys.c.key],
            set_={name: insert.excluded[name] for name in row if name != "key"},
            where=free,
        ).returning(keys.c.holder)
        won = await self.database.write(lambda connection: connection.scalar(claim))
        return Claim(key, fingerprint, holder=holder) if won == holder else None

    async def renew(self, claim: Claim) -> None:
        """Say that the execution goes on."""
        await self._update(claim, lease=time.time() + LEASE_S)

    async def keep(self, claim: Claim, answer: KeptAnswer) -> None:
        """Keep the answer, unless the key has been claimed by another meanwhile."""
        headers = json.dumps(answer.headers)
        await self._update(claim, status=answer.status, headers=headers, body=answer.body)

    async def _update(self, claim: Claim, **values: Any) -> None:
        mine = (keys.c.key == claim.key, keys.c.holder == claim.holder)
        change = update(keys).where(*mine).values(values)
        await self.database.write(lambda connection: connection.execute(change))

    async def release(self, claim: Claim) -> None:
        """Give the key back: the next request with it is executed."""
        mine = (keys.c.key == claim.key, keys.c.holder == claim.holder)
        await self.database.write(lambda connection: connection.execute(delete(keys).where(*mine)))

    async def prune(self) -> None:
        """Delete what is past its time, some of it."""
        old = select(keys.c.key).where(keys.c.created < time.time() - KEPT_S).limit(PRUNE_ROWS)
        async with self.database.reading() as connection:
            doomed = (await connection.scalars(old)).all()
        if doomed:
            gone = delete(keys).where(keys.c.key.in_(doomed))
            await self.database.write(lambda connection: connection.execute(gone))
