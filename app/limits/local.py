"""Limits of one process, in its memory."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from app.limits.asks import Ask, Grant, Level, Rate, Refusal, Slots, corrections
from app.limits.window import PARTS, WINDOW_S, Window


class LocalLimiter:
    """See `Limiter` for what the methods promise. Nothing here waits: the event loop is the lock."""

    def __init__(
        self, *, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.window_s, self.clock = window_s, clock
        self.windows: dict[str, Window] = {}
        self.taken: Counter[str] = Counter()
        self._sweep_at = 0.0

    async def admit(self, ask: Ask) -> Grant | Refusal:
        now = self.clock()
        self._sweep(now)
        windows = [self._window(rate.name) for rate in ask.rates]
        if refused := self._refused(ask, windows, now):
            by, wait_s = refused
            return Refusal(by, wait_s, _levels(windows, now))
        place = 0
        for rate, window in zip(ask.rates, windows, strict=True):
            place = window.charge(now, rate.amount)
        for slots in ask.slots:
            self.taken[slots.name] += 1
        return Grant(self, ask, "", place, _levels(windows, now))

    def settle(self, grant: Grant, used: int | None) -> None:
        for slots in grant.ask.slots:
            self.taken[slots.name] -= 1
            if not self.taken[slots.name]:
                del self.taken[slots.name]
        for rate, amount in zip(grant.ask.rates, corrections(grant.ask, used), strict=True):
            if amount and (window := self.windows.get(rate.name)):
                window.refund(grant.place, amount)

    async def close(self) -> None:
        """Nothing is pending."""

    def _refused(self, ask: Ask, windows: Sequence[Window], now: float) -> tuple[Rate | Slots, float] | None:
        """The rate that is to be waited for longest, else the first thing whose slots are taken."""
        longest: tuple[Rate | Slots, float] | None = None
        for rate, window in zip(ask.rates, windows, strict=True):
            wait_s = window.wait(now, rate.amount, rate.limit)
            if wait_s and (longest is None or wait_s > longest[1]):
                longest = rate, wait_s
        if longest is None:
            for slots in ask.slots:
                if self.taken[slots.name] >= slots.limit:
                    return slots, 0.0
        return longest

    def _window(self, name: str) -> Window:
        window = self.windows.get(name)
        if window is None:
            window = self.windows[name] = Window(self.window_s / PARTS)
        return window

    def _sweep(self, now: float) -> None:
        """Once in a window's time, forget the keys that have not been seen for one."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + self.window_s
        for window in self.windows.values():
            window.forget(now)
        self.windows = {name: window for name, window in self.windows.items() if window.amounts}


def _levels(windows: Sequence[Window], now: float) -> tuple[Level, ...]:
    return tuple([Level(window.used, window.reset(now)) for window in windows])
