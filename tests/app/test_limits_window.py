"""The window of a rate: what holds of it whatever is asked, charged and refunded, in whatever order."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from app.limits.window import PARTS, Window

LIMIT = 100
WINDOW_S = 60.0
Step = tuple[float, int, float]
"""Seconds since the last step, an amount to ask for, and the share of it that is used in the end."""
steps = st.lists(
    st.tuples(
        st.floats(0, 40, allow_nan=False), st.integers(1, LIMIT), st.floats(0, 1, allow_nan=False)
    ),
    max_size=60,
)


@dataclass
class Charge:
    at: float
    place: int
    charged: int
    kept: int
    """What is counted of it after its refund."""


def play(script: list[Step], *, refund_after: int) -> tuple[list[Charge], list[tuple[float, int]], Window]:
    """Ask for everything in turn; each charge is settled when so many steps more have passed. Gives the
    charges, and how much was used at each step by the window's own count."""
    window, now, charges, seen = Window(), 1000.0, [], []
    open_charges: list[tuple[int, Charge, int]] = []
    for number, (pause, amount, share) in enumerate(script):
        now += pause
        for due, charge, used in list(open_charges):
            if due <= number:
                window.refund(charge.place, charge.charged - used)
                charge.kept = used
                open_charges.remove((due, charge, used))
        if window.wait(now, amount, LIMIT) == 0:
            charge = Charge(now, window.charge(now, amount), amount, amount)
            charges.append(charge)
            open_charges.append((number + refund_after, charge, math.floor(share * amount)))
        seen.append((now, window.used))
    return charges, seen, window


@given(steps, st.integers(1, 8))
def test_no_window_ever_holds_more_than_the_limit(script: list[Step], refund_after: int) -> None:
    """In any 60 seconds, wherever they begin, what was charged and not given back is within the limit."""
    charges, seen, _ = play(script, refund_after=refund_after)
    assert all(0 <= used <= LIMIT for _, used in seen)
    for first in charges:
        within = [c.kept for c in charges if first.at <= c.at <= first.at + WINDOW_S]
        assert sum(within) <= LIMIT


@given(steps)
def test_without_refunds_no_charge_is_refused_that_fits_with_a_sixtieth_to_spare(script: list[Step]) -> None:
    """The price of the sixtieths: what is refused would break the limit over 61 of them."""
    window, now, charges = Window(), 1000.0, []
    for pause, amount, _ in script:
        now += pause
        if window.wait(now, amount, LIMIT) == 0:
            window.charge(now, amount)
            charges.append((now, amount))
        else:
            recent = sum(there for at, there in charges if at >= now - WINDOW_S * (PARTS + 1) / PARTS)
            assert recent + amount > LIMIT


@given(steps, st.integers(1, 8))
def test_the_wait_is_honest(script: list[Step], refund_after: int) -> None:
    """After the wait that was said the amount fits, a moment before it does not; the reset empties."""
    _, seen, window = play(script, refund_after=refund_after)
    now = seen[-1][0] if seen else 1000.0
    for amount in (1, 37, LIMIT):
        wait = window.wait(now, amount, LIMIT)
        later = Window()
        later.amounts, later.used = dict(window.amounts), window.used
        if wait:
            assert later.wait(now + wait - 1e-3, amount, LIMIT) > 0
        assert later.wait(now + wait + 1e-6, amount, LIMIT) == 0
    reset = window.reset(now)
    window.forget(now + reset + 1e-6)
    assert window.used == 0 and not window.amounts


@given(steps, st.integers(0, 200))
def test_a_refund_never_gives_more_than_was_charged(script: list[Step], late_s: int) -> None:
    """All charges given back: the window is empty, whether they had left it or not."""
    charges, seen, window = play(script, refund_after=10_000)
    now = (seen[-1][0] if seen else 1000.0) + late_s
    window.forget(now)
    before = window.used
    for charge in charges:
        window.refund(charge.place, charge.charged)
        assert 0 <= window.used <= before
    assert window.used == 0


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=20))
def test_what_is_left_is_what_was_used(charges: list[tuple[int, int]]) -> None:
    """Charges minus refunds is the use, exactly, also where more was used than charged."""
    window = Window()
    places = [window.charge(1000.0 + n, charged) for n, (charged, _) in enumerate(charges)]
    for place, (charged, used) in zip(places, charges, strict=True):
        window.refund(place, charged - used)
    assert window.used == sum(used for _, used in charges)
