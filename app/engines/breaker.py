"""When to leave an upstream alone: a circuit breaker."""

import time
from collections.abc import Callable
from typing import Literal

LONGEST_COOLDOWN_S = 60.0


class Breaker:
    """Opens after `limit` failures in a row; after `cooldown_s` one request may try, and decides.

    A failed try doubles the pause, up to `LONGEST_COOLDOWN_S`.
    """

    def __init__(
        self, limit: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._first_cooldown, self._clock = limit, cooldown_s, clock
        self._cooldown = cooldown_s
        self._failures = 0
        self._opened_at: float | None = None
        self._trying = False
        self.times_opened = 0

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        if self._opened_at is None:
            return "closed"
        return "half_open" if self._clock() >= self._opened_at + self._cooldown else "open"

    @property
    def allows(self) -> bool:
        """Whether a request may be sent now."""
        return self.state == "closed" or (self.state == "half_open" and not self._trying)

    def begin(self) -> None:
        """A request is sent. In the half-open state it is the one that decides."""
        self._trying = self._opened_at is not None

    def leave(self) -> None:
        """The request ended without saying anything about the upstream: its client left."""
        self._trying = False

    def succeed(self) -> None:
        self._failures, self._opened_at, self._trying = 0, None, False
        self._cooldown = self._first_cooldown

    def fail(self) -> None:
        self._failures += 1
        self._trying = False
        if self._opened_at is not None:
            if self.state == "half_open":
                self._cooldown = min(2 * self._cooldown, LONGEST_COOLDOWN_S)
                self._opened_at = self._clock()
        elif self._failures >= self._limit:
            self.times_opened += 1
            self._opened_at = self._clock()
