"""Where requests wait for a slot: in order within a lane, the lanes in turn."""

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field

from app.errors import AppError
from app.limits.answers import queue_full, slots_taken
from app.limits.asks import Ask, Grant, Limiter, Refusal, Slots
from app.observe import current
from app.telemetry import Telemetry

POLL_S = 0.05
"""How often to look for a slot that another server gave back."""


@dataclass(eq=False, slots=True)
class _Waiter:
    ask: Ask
    by: Slots
    """Whose slots were taken when it was last tried."""
    answer: "asyncio.Future[Grant | Refusal | AppError]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class AdmissionQueue:
    """Nobody in it holds anything: an ask is tried as a whole, whenever its turn comes."""

    def __init__(
        self, limiter: Limiter, telemetry: Telemetry, *, length: int, timeout_s: float, poll_s: float = POLL_S
    ) -> None:
        self.limiter, self.telemetry = limiter, telemetry
        self.length, self.timeout_s, self.poll_s = length, timeout_s, poll_s
        self.waiting = 0
        self._lanes: dict[str, deque[_Waiter]] = {}
        """Whose turn it is comes first."""
        self._full = False
        """Those that wait need a slot that everybody needs: who comes now waits behind them."""
        self._freed = asyncio.Event()
        self._last_freed: float | None = None
        self._pace_s = 0.0
        self._pump: asyncio.Task[None] | None = None

    async def admit(self, ask: Ask) -> Grant | Refusal:
        """What is asked for, after a wait for slots where there are none, or the refusal of a rate.

        Raises `Overloaded` where too many wait or the wait is too long, and `RateLimited` where the slots
        are the key's own.
        """
        if ask.slots and (self._full or ask.lane in self._lanes):
            return await self._wait(_Waiter(ask, ask.slots[-1]))
        reply = await self.limiter.admit(ask)
        if isinstance(reply, Grant) or not isinstance(reply.by, Slots):
            return reply
        self._full = self._full or reply.by.scope == "total"
        return await self._wait(_Waiter(ask, reply.by))

    def freed(self) -> None:
        """A slot of this server's was given back."""
        if not self.waiting:
            self._last_freed = None
            return
        now = time.monotonic()
        if self._last_freed is not None:
            # The mean time between two, over the last ten or so, while somebody waits.
            self._pace_s += 0.1 * (now - self._last_freed - self._pace_s)
        self._last_freed = now
        self._freed.set()

    async def close(self) -> None:
        if self._pump:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _wait(self, waiter: _Waiter) -> Grant | Refusal:
        self._enter(waiter)
        started, state = time.perf_counter(), current.get()
        if state:
            state.pause()
        try:
            await asyncio.wait({waiter.answer}, timeout=self.timeout_s)
        except asyncio.CancelledError:
            # A grant may be there already: then it goes back. Else the future is marked for who tries it.
            if not waiter.answer.cancel() and isinstance(grant := waiter.answer.result(), Grant):
                self.limiter.settle(grant, None)
                self.freed()
            raise
        finally:
            self._leave(waiter)
            self.telemetry.admission_wait.observe(time.perf_counter() - started)
            if state:
                state.resume()
        if not waiter.answer.done():
            waiter.answer.cancel()
            self._count_refused("queue_timeout", waiter.by.scope)
            raise slots_taken(waiter.by, self.timeout_s, self._expected_s())
        answer = waiter.answer.result()
        if isinstance(answer, AppError):
            self._count_refused("queue_full", "total")
            raise answer
        return answer

    def _enter(self, waiter: _Waiter) -> None:
        """Take the last place of the lane. Where no place is left, the last of the longest lane leaves."""
        lane = self._lanes.setdefault(waiter.ask.lane, deque())
        lane.append(waiter)
        self.waiting += 1
        self.telemetry.admission_queue.set(self.waiting)
        if self.waiting > self.length:
            last = max(self._lanes.values(), key=len)[-1]
            last.answer.set_result(queue_full(self.length, self._expected_s()))
            self._leave(last)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())

    def _leave(self, waiter: _Waiter) -> None:
        lane = self._lanes.get(waiter.ask.lane)
        if lane is None or waiter not in lane:
            return
        lane.remove(waiter)
        if not lane:
            del self._lanes[waiter.ask.lane]
        self.waiting -= 1
        self._full = self._full and bool(self.waiting)
        self.telemetry.admission_queue.set(self.waiting)

    async def _run(self) -> None:
        """Try those whose turn it is, whenever a slot may be free."""
        while self.waiting:
            self._freed.clear()
            await self._turn()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll_s):
                    await self._freed.wait()

    async def _turn(self) -> None:
        progress = True
        while progress:
            progress = False
            for name in list(self._lanes):
                if name not in self._lanes:
                    continue
                waiter = self._lanes[name][0]
                reply = await self.limiter.admit(waiter.ask)
                if isinstance(reply, Refusal) and isinstance(reply.by, Slots):
                    waiter.by = reply.by
                    if reply.by.scope == "total":
                        self._full = bool(self.waiting)
                        return
                    continue
                progress = True
                self._answer(waiter, reply)
        self._full = False

    def _answer(self, waiter: _Waiter, reply: Grant | Refusal) -> None:
        if waiter.answer.done():  # it has left while it was tried
            if isinstance(reply, Grant):
                self.limiter.settle(reply, None)
            return
        waiter.answer.set_result(reply)
        self._leave(waiter)
        if lane := self._lanes.pop(waiter.ask.lane, None):
            self._lanes[waiter.ask.lane] = lane

    def _expected_s(self) -> float:
        """When a place comes, by how fast the last ones came; 0: none came yet."""
        return self.waiting * self._pace_s

    def _count_refused(self, reason: str, scope: str) -> None:
        self.telemetry.limited.labels(reason, scope).inc()
