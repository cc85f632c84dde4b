"""What a request asks for, what it gets, and the protocol of what counts it."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

Scope = Literal["key", "total"]
Kind = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` in any minute, of which this request takes `amount`. Whoever has the same name counts
    together."""

    name: str
    scope: Scope
    kind: Kind
    limit: int
    amount: int


@dataclass(frozen=True, slots=True)
class Slots:
    """At most `limit` requests at a time."""

    name: str
    scope: Scope
    limit: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request's share of everything that is limited; none of an amount is over its limit. `lane`: whose
    requests wait in one line."""

    rates: tuple[Rate, ...]
    slots: tuple[Slots, ...]
    lane: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """How full a rate's window is after an ask, and after how many seconds it is empty if nothing comes."""

    used: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """What was asked for, taken. Give it back to its `limiter` by `settle`, once."""

    limiter: "Limiter" = field(repr=False)
    ask: Ask
    lease: str
    place: int
    """Where in the window it was charged."""
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was taken. Of a rate, `wait_s` is when the ask would fit if nothing else came; a slot comes
    when one is given back."""

    by: Rate | Slots
    wait_s: float
    levels: tuple[Level, ...]


class Limiter(Protocol):
    """Counts. All of an ask is taken, or nothing of it."""

    async def admit(self, ask: Ask) -> Grant | Refusal:
        """Take what is asked for, now or not at all. Cancelled, it takes nothing."""

    def settle(self, grant: Grant, used: int | None) -> None:
        """Give the slots back, and of the tokens what was not used; `used` may be more than was charged.
        None: the request was not served, and has never asked. Waits for nothing."""

    async def close(self) -> None:
        """Finish what `settle` has begun."""


def corrections(ask: Ask, used: int | None) -> list[int]:
    """What each rate of an ask gets back; negative where more was used than charged."""
    if used is None:
        return [rate.amount for rate in ask.rates]
    return [rate.amount - used if rate.kind == "tokens" else 0 for rate in ask.rates]
