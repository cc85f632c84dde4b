"""The minute that a rate looks back on. docs/decisions/007-limits.md says why it is a window and no bucket.

Time goes in sixtieths of the window. An amount counts from its sixtieth until a whole window after the end of
it: so any interval of a window's length holds at most the limit, whatever came before.
"""

import math

PARTS = 60
WINDOW_S = 60.0


class Window:
    """Amounts of the last `part_s * 60` seconds. Times are seconds of one clock that does not go back."""

    __slots__ = ("amounts", "part_s", "used")

    def __init__(self, part_s: float = WINDOW_S / PARTS) -> None:
        self.part_s, self.used = part_s, 0
        self.amounts: dict[int, int] = {}
        """By sixtieth, the oldest first."""

    def forget(self, now: float) -> None:
        """Drop what has left the window."""
        oldest = math.floor(now / self.part_s) - PARTS
        while self.amounts and (first := next(iter(self.amounts))) < oldest:
            self.used -= self.amounts.pop(first)

    def wait(self, now: float, amount: int, limit: int) -> float:
        """Seconds until `amount` fits if nothing else comes: 0 where it does now. `amount` is at most
        `limit`."""
        self.forget(now)
        excess = self.used + amount - limit
        if excess <= 0:
            return 0.0
        for place, there in self.amounts.items():
            excess -= there
            if excess <= 0:
                return self._leaves(place) - now
        raise AssertionError(f"{amount} never fits into {limit}")

    def charge(self, now: float, amount: int) -> int:
        """Count `amount` now, and give its place, for `refund`."""
        self.forget(now)
        place = math.floor(now / self.part_s)
        self.amounts[place] = self.amounts.get(place, 0) + amount
        self.used += amount
        return place

    def refund(self, place: int, amount: int) -> None:
        """Take back a part of what was charged there (negative: charge more); nothing where that has left the
        window."""
        if place in self.amounts:
            self.amounts[place] -= amount
            self.used -= amount

    def reset(self, now: float) -> float:
        """Seconds until the window is empty if nothing comes."""
        return max(0.0, self._leaves(next(reversed(self.amounts))) - now) if self.amounts else 0.0

    def _leaves(self, place: int) -> float:
        return (place + PARTS + 1) * self.part_s
