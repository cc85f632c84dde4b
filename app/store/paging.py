"""Pages of a table in the order in which its rows were made, each beginning behind a row that was seen."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection


async def page(
    connection: AsyncConnection,
    wanted: Select[Any],
    table: Table,
    seen: ColumnElement[bool],
    *,
    limit: int,
    after: str | None,
    descending: bool = True,
) -> Sequence[Row[Any]] | None:
    """The first `limit` rows of `wanted`, a query of `table`, among those that are `seen`; those behind the
    row with the id `after`. None: no such row is seen.

    By place and not by number, so that what is added or deleted meanwhile neither repeats nor hides a row.
    `table` has the columns `created` and `id`, by which rows of one moment are told apart.
    """
    place = (table.c.created, table.c.id)
    wanted = wanted.where(seen).limit(limit)
    wanted = wanted.order_by(*(column.desc() for column in place) if descending else place)
    if after is not None:
        created = await connection.scalar(select(table.c.created).where(seen, table.c.id == after))
        if created is None:
            return None
        here, last = tuple_(*place), tuple_(created, after)
        wanted = wanted.where(here < last if descending else here > last)
    rows: Sequence[Row[Any]] = (await connection.execute(wanted)).all()
    return rows
