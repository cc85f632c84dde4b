"""Feedback and the preference pairs that it makes: one row for what a person said, one for each pair.

The latest word holds: feedback replaces earlier feedback of its owner about the same, and of an owner's pairs
with the same prompt and the same two texts only the last is kept. So an export only reads.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, func, insert, select, text, true, update

from app.security import Identity
from app.store import paging
from app.store.database import Database
from app.store.records import digest, dumps
from app.store.tables import feedback, feedback_pairs

LOCK = text("SELECT pg_advisory_xact_lock(7310289890)")
"""One at a time, so that numbers are given in the order in which they become visible: whoever reads on from
a number misses nothing. SQLite has one writer anyhow."""
PRUNE_ROWS = 500
ROW = ("id", "owner", "created", "kind", "run_id", "subject", "prompt", "provenance")
"""Columns that are fields of a record."""


@dataclass(frozen=True, slots=True)
class Pair:
    chosen: str
    rejected: str


@dataclass(slots=True)
class FeedbackRecord:
    """What somebody said. `subject` is a hash of the owner and of what it is about; `prompt` and
    `provenance` are JSON text. `rated`: a response and its rating, which make pairs with earlier ones."""

    id: str
    owner: str | None
    created: float
    kind: str
    run_id: str | None
    subject: str
    prompt: str
    provenance: str
    pairs: list[Pair] = field(default_factory=list)
    rated: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """Feedback in a list: `pairs` is how many it makes now."""

    id: str
    created: float
    kind: str
    run_id: str | None
    replaced_by: str | None
    provenance: str
    pairs: int


def pair_key(owner: str | None, prompt: str, one: str, other: str) -> str:
    """The same for an owner's pair of texts in either order."""
    return digest(owner, "pair", prompt, *sorted((one, other)))


class FeedbackTable:
    """Raises what the database raises."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, record: FeedbackRecord) -> list[Pair]:
        """Store it; once this returns it is on the disk. Returns the pairs that it makes."""
        return await self.database.write(lambda c: self._add(c, record), durable=True)

    def _add(self, connection: Connection, record: FeedbackRecord) -> list[Pair]:
        if not self.database.is_sqlite:
            connection.execute(LOCK)
        earlier = (feedback.c.subject == record.subject, feedback.c.replaced_by.is_(None))
        replaced = update(feedback).where(*earlier).values(replaced_by=record.id)
        numbers = connection.scalars(replaced.returning(feedback.c.number)).all()
        connection.execute(delete(feedback_pairs).where(feedback_pairs.c.feedback.in_(numbers)))
        rated = record.rated or (None, None)
        row = {name: getattr(record, name) for name in ROW} | {
            "response": None if rated[0] is None else dumps(rated[0]),
            "rating": rated[1],
        }
        number = connection.scalar(insert(feedback).values(row).returning(feedback.c.number))
        pairs = [*record.pairs, *self._rated_pairs(connection, record)]
        for pair in pairs:
            key = pair_key(record.owner, record.prompt, pair.chosen, pair.rejected)
            connection.execute(delete(feedback_pairs).where(feedback_pairs.c.key == key))
            values = {
                "feedback": number,
                "key": key,
                "digest": digest(record.prompt, pair.chosen, pair.rejected),
                "chosen": dumps(pair.chosen),
                "rejected": dumps(pair.rejected),
            }
            connection.execute(insert(feedback_pairs).values(values))
        return pairs

    def _rated_pairs(self, connection: Connection, record: FeedbackRecord) -> list[Pair]:
        """What this rating and the others of the run say together: of two that differ, the better one is
        preferred. A pair whose ratings have become equal is deleted."""
        if record.rated is None:
            return []
        mine, rating = record.rated
        current = (
            feedback.c.run_id == record.run_id,
            feedback.c.owner.is_not_distinct_from(record.owner),
            feedback.c.kind == record.kind,
            feedback.c.replaced_by.is_(None),
            feedback.c.id != record.id,
        )
        wanted = select(feedback.c.response, feedback.c.rating).where(*current).order_by(feedback.c.number)
        pairs = []
        for response, other in connection.execute(wanted).all():
            theirs = json.loads(response)
            if other != rating:
                pairs.append(Pair(mine, theirs) if rating > other else Pair(theirs, mine))
                continue
            key = pair_key(record.owner, record.prompt, mine, theirs)
            ratings = select(feedback.c.number).where(feedback.c.kind == record.kind)
            gone = delete(feedback_pairs).where(feedback_pairs.c.key == key)
            connection.execute(gone.where(feedback_pairs.c.feedback.in_(ratings)))
        return pairs

    async def latest(
        self, viewer: Identity, *, limit: int, after: str | None, run_id: str | None, since: float
    ) -> list[Said] | None:
        """The latest feedback that `viewer` sees, or that before the feedback `after`: of one run, or of all,
        since a time. None: it sees no feedback `after`."""
        pairs = select(func.count()).where(feedback_pairs.c.feedback == feedback.c.number)
        columns = [feedback.c[name] for name in Said.__dataclass_fields__ if name != "pairs"]
        wanted = select(*columns, pairs.scalar_subquery().label("pairs"))
        if run_id is not None:
            wanted = wanted.where(feedback.c.run_id == run_id)
        if since:
            wanted = wanted.where(feedback.c.created >= since)
        seen = true() if viewer.may("admin") else feedback.c.owner == viewer.owner
        async with self.database.reading() as connection:
            found = await paging.page(connection, wanted, feedback, seen, limit=limit, after=after)
        return None if found is None else [Said(**row._mapping) for row in found]

    async def last(self) -> int:
        """The number of the newest pair."""
        async with self.database.reading() as connection:
            return int(await connection.scalar(select(func.max(feedback_pairs.c.number))) or 0)

    async def page(self, wanted: "Wanted", after: int, limit: int) -> Sequence[Any]:
        """The next pairs, in the order of their numbers."""
        async with self.database.reading() as connection:
            rows: Sequence[Any] = (await connection.execute(wanted.rows(after, limit))).all()
            return rows

    async def prune(self, max_age_s: float) -> int:
        """Delete feedback that is older, with its pairs, some of it. Returns how much."""
        old = select(feedback.c.number).where(feedback.c.created < time.time() - max_age_s)
        async with self.database.reading() as connection:
            doomed = (await connection.scalars(old.limit(PRUNE_ROWS))).all()
        if doomed:
            gone = delete(feedback).where(feedback.c.number.in_(doomed))
            await self.database.write(lambda connection: connection.execute(gone))
        return len(doomed)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pairs: numbers up to `until`, of feedback since a time; of one owner, or of everybody."""

    until: int
    since: float
    everybody: bool
    owner: str | None

    def rows(self, after: int, limit: int) -> Select[Any]:
        """A page of them. What two people said alike stands once, where it stood first."""
        columns = (
            feedback_pairs.c.number, feedback_pairs.c.key, feedback_pairs.c.chosen, feedback_pairs.c.rejected,
            feedback.c.id, feedback.c.created, feedback.c.kind, feedback.c.prompt, feedback.c.provenance,
        )  # fmt: skip
        rows = (
            select(*columns)
            .join(feedback, feedback.c.number == feedback_pairs.c.feedback)
            .where(feedback_pairs.c.number > after, feedback_pairs.c.number <= self.until)
            .order_by(feedback_pairs.c.number)
            .limit(limit)
        )
        if self.since:
            rows = rows.where(feedback.c.created >= self.since)
        if not self.everybody:
            return rows.where(feedback.c.owner.is_not_distinct_from(self.owner))
        before = feedback_pairs.alias("before")
        same = (before.c.digest == feedback_pairs.c.digest, before.c.number < feedback_pairs.c.number)
        return rows.where(~exists().where(*same))
