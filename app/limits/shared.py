"""Limits that several servers share, counted in Redis or Valkey.

Every admission is one round trip: a script takes all of an ask or nothing of it, by Redis' own clock. Slots
are leases that the server renews while it lives. Every key expires by itself.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Coroutine
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.limits.asks import Ask, Grant, Level, Rate, Refusal, Slots, corrections
from app.limits.window import PARTS, WINDOW_S

DEADLINE_S = 0.25
"""How long an answer of Redis is waited for."""
CONNECTIONS = 16
MAX_UNSETTLED = 10_000
PREFIX = "{pit}:"
"""The braces keep all keys in one slot of a cluster."""
UNREACHABLE = (RedisError, OSError, TimeoutError)


class SharedLimiter:
    """See `Limiter` for what the methods promise; `admit` raises one of `UNREACHABLE` where Redis fails."""

    def __init__(self, url: str, *, lease_s: float = 30.0, window_s: float = WINDOW_S) -> None:
        """Raises `ValueError` for a URL that is none of Redis."""
        pool = BlockingConnectionPool.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            max_connections=CONNECTIONS,
            timeout=DEADLINE_S,
            socket_timeout=DEADLINE_S,
            socket_connect_timeout=DEADLINE_S,
            retry=Retry(NoBackoff(), 0),
        )
        self.redis = Redis.from_pool(pool)
        self.lease_s, self.window_s = lease_s, window_s
        self._part_us = round(1e6 * window_s / PARTS)
        self._admit, self._settle, self._renew = (
            self.redis.register_script(files("app.limits").joinpath(f"{name}.lua").read_text())
            for name in ("admit", "settle", "renew")
        )
        self._held: dict[str, set[str]] = {}
        """The leases to be renewed, by the name of their slots."""
        self._unsettled: deque[tuple[Grant, int | None]] = deque(maxlen=MAX_UNSETTLED)
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Begin to renew leases."""
        self._begin(self._keep_renewing())

    async def admit(self, ask: Ask) -> Grant | Refusal:
        attempt = self._begin(self._try(ask))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            # Whether the script has run cannot be known yet: what it has taken goes back when it answers.
            attempt.add_done_callback(self._return)
            raise

    def settle(self, grant: Grant, used: int | None) -> None:
        for slots in grant.ask.slots:
            if leases := self._held.get(slots.name):
                leases.discard(grant.lease)
        self._begin(self._give_back(grant, used))

    async def close(self) -> None:
        """Nothing is admitted any more; what ends is settled."""
        renewing = [task for task in self._tasks if task.get_name() == "renew"]
        for task in renewing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.redis.aclose()

    async def check(self) -> None:
        """Raises one of `UNREACHABLE`. Where Redis answers, what could not be settled before is now."""
        async with asyncio.timeout(DEADLINE_S):
            await self.redis.ping()
        while self._unsettled:
            self._begin(self._give_back(*self._unsettled.popleft()))

    async def _try(self, ask: Ask) -> Grant | Refusal:
        lease = uuid.uuid4().hex
        arguments: list[str | int] = [lease, round(1000 * self.lease_s), self._part_us, len(ask.rates)]
        for rate in ask.rates:
            arguments += rate.limit, rate.amount
        arguments += [slots.limit for slots in ask.slots]
        granted, number, wait_us, place, *levels = await self._admit(_keys(ask), arguments)
        found = tuple(
            Level(used, reset_us / 1e6) for used, reset_us in zip(levels[::2], levels[1::2], strict=True)
        )
        if not granted:
            parts: list[Rate | Slots] = [*ask.rates, *ask.slots]
            return Refusal(parts[number - 1], wait_us / 1e6, found)
        for slots in ask.slots:
            self._held.setdefault(slots.name, set()).add(lease)
        return Grant(self, ask, lease, place, found)

    def _return(self, attempt: "asyncio.Task[Grant | Refusal]") -> None:
        if not attempt.cancelled() and not attempt.exception() and isinstance(attempt.result(), Grant):
            self.settle(attempt.result(), None)  # type: ignore[arg-type]

    async def _give_back(self, grant: Grant, used: int | None) -> None:
        back = corrections(grant.ask, used)
        arguments: list[str | int] = [grant.lease, grant.place, len(back), *back]
        try:
            await self._settle(_keys(grant.ask), arguments)
        except UNREACHABLE:
            # It may have been done. Only a lease tells, so that without one there is no second try: what is
            # not given back leaves the window by itself.
            if grant.ask.slots:
                self._unsettled.append((grant, used))

    async def _keep_renewing(self) -> None:
        asyncio.current_task().set_name("renew")  # type: ignore[union-attr]
        while True:
            await asyncio.sleep(self.lease_s / 3)
            self._held = {name: leases for name, leases in self._held.items() if leases}
            for name, leases in list(self._held.items()):
                try:
                    await self._renew([PREFIX + name], [round(1000 * self.lease_s), *leases])
                except UNREACHABLE:
                    break  # whoever is admitted next notices

    def _begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _keys(ask: Ask) -> list[str]:
    return [PREFIX + rate.name for rate in ask.rates] + [PREFIX + slots.name for slots in ask.slots]
