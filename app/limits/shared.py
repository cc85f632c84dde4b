"""Limits that several servers share, counted in Redis or Valkey.

Every admission is one round trip: a script takes all of an ask or nothing of it, by Redis' own clock. Slots
are leases that the server renews while it lives. Every key expires by itself.
"""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Coroutine
from typing import Any

from app.limits.asks import Ask, Grant, Level, Rate, Refusal, Slots, corrections
from app.limits.line import UNREACHABLE, Line, Script
from app.limits.window import PARTS, WINDOW_S

MAX_UNSETTLED = 10_000
PREFIX = "{pit}:"
"""The braces keep all keys in one slot of a cluster."""
NOWHERE = -1
ADMIT, SETTLE, RENEW = Script("admit"), Script("settle"), Script("renew")
Reply = Grant | Refusal


class SharedLimiter:
    """See `Limiter` for what the methods promise; `admit` raises one of `UNREACHABLE` where Redis fails."""

    def __init__(self, url: str, *, lease_s: float = 30.0, window_s: float = WINDOW_S) -> None:
        """Raises `ValueError` for a URL that is none of Redis."""
        self.line = Line(url)
        self.lease_ms = round(1000 * lease_s)
        self._part_us = round(1e6 * window_s / PARTS)
        self._held: dict[str, set[str]] = {}
        """The leases to be renewed, by the name of their slots."""
        self._unsettled: deque[tuple[Grant, int | None]] = deque(maxlen=MAX_UNSETTLED)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and begin to renew leases."""
        self._begin(self._connect())
        self._renewal = asyncio.create_task(self._keep_renewing())

    async def admit(self, ask: Ask) -> Reply:
        attempt: asyncio.Task[Reply] = self._begin(self._try(ask))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            # Whether the script has run cannot be known yet: what it takes goes back when it answers.
            attempt.add_done_callback(self._return)
            raise

    def settle(self, grant: Grant, used: int | None) -> None:
        for slots in grant.ask.slots:
            if leases := self._held.get(slots.name):
                leases.discard(grant.lease)
        self._begin(self._give_back(grant, used))

    async def close(self) -> None:
        if self._renewal:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.line.close()

    async def check(self) -> None:
        """Raises one of `UNREACHABLE`. Where Redis answers, what could not be settled before is now."""
        await self.line.ping()
        self._try_again()

    async def _try(self, ask: Ask) -> Reply:
        lease = uuid.uuid4().hex
        arguments: list[str | int] = [lease, self.lease_ms, self._part_us, len(ask.rates)]
        for rate in ask.rates:
            arguments += rate.limit, rate.amount
        arguments += [slots.limit for slots in ask.slots]
        try:
            granted, number, wait_us, place, *levels = await self.line.call(ADMIT, _keys(ask), arguments)
        except UNREACHABLE:
            # It may have been done. The lease can be given back; where it was charged is not known.
            self._leave(Grant(self, ask, lease, NOWHERE, ()), None)
            raise
        found = tuple(
            Level(used, reset_us / 1e6) for used, reset_us in zip(levels[::2], levels[1::2], strict=True)
        )
        if not granted:
            parts: list[Rate | Slots] = [*ask.rates, *ask.slots]
            return Refusal(parts[number - 1], wait_us / 1e6, found)
        for slots in ask.slots:
            self._held.setdefault(slots.name, set()).add(lease)
        return Grant(self, ask, lease, place, found)

    def _return(self, attempt: "asyncio.Task[Reply]") -> None:
        if not attempt.cancelled() and not attempt.exception():
            reply = attempt.result()
            if isinstance(reply, Grant):
                self.settle(reply, None)

    async def _give_back(self, grant: Grant, used: int | None) -> None:
        back = corrections(grant.ask, used)
        try:
            await self.line.call(SETTLE, _keys(grant.ask), [grant.lease, grant.place, len(back), *back])
        except UNREACHABLE:
            self._leave(grant, used)

    def _leave(self, grant: Grant, used: int | None) -> None:
        """Settle it later. Whether it was settled only its lease can tell: without one there is no second
        try, and what is not given back leaves the window by itself."""
        if grant.ask.slots:
            self._unsettled.append((grant, used))

    def _try_again(self) -> None:
        for _ in range(len(self._unsettled)):
            self._begin(self._give_back(*self._unsettled.popleft()))

    async def _connect(self) -> None:
        """Before the first burst of requests does."""
        with contextlib.suppress(*UNREACHABLE):
            await self.line.teach((ADMIT, SETTLE, RENEW))

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self.lease_ms / 3000)
            self._try_again()
            self._held = {name: leases for name, leases in self._held.items() if leases}
            renewals = [
                self.line.call(RENEW, [PREFIX + name], [self.lease_ms, *leases])
                for name, leases in self._held.items()
            ]
            # Whoever is admitted next notices a failure.
            await asyncio.gather(*renewals, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _keys(ask: Ask) -> list[str]:
    return [PREFIX + rate.name for rate in ask.rates] + [PREFIX + slots.name for slots in ask.slots]
