"""What a client hears of limits: errors that say what to do, and OpenAI's headers."""

import math
from typing import TypeVar

from app.errors import BadRequest, Overloaded, RateLimited
from app.limits.asks import Ask, Level, Rate, Refusal, Slots

Headers = list[tuple[bytes, bytes]]
LONGEST_RETRY_S = 60
E = TypeVar("E", RateLimited, Overloaded)


def rate_limited(refusal: Refusal, level: Level) -> RateLimited:
    """A rate is used up. `Retry-After` is when the request fits, if no other takes the place."""
    rate = refusal.by
    assert isinstance(rate, Rate)
    seconds = max(1, math.ceil(refusal.wait_s))
    if rate.kind == "requests":
        message = f"{_who(rate)} may send {rate.limit} requests a minute, and they have been sent."
        advice = ""
    else:
        message = (
            f"{_who(rate)} may use {rate.limit} tokens a minute, of which {max(0, rate.limit - level.used)}"
            f" are left; this request may take up to {rate.amount}."
        )
        advice = ", or lower what it may take"
    error = RateLimited(f"{message} Try again in {seconds} s{advice}.")
    error.retry_after = seconds
    return error


def never_fits(rate: Rate, lower: str) -> BadRequest:
    """Waiting does not help. `lower` says what does."""
    return BadRequest(
        f"This request may take up to {rate.amount} tokens, and {_who(rate, first=False)} may use"
        f" {rate.limit} a minute. {lower}",
        code="over_token_limit",
    )


def slots_taken(slots: Slots, waited_s: float, retry_s: float) -> RateLimited | Overloaded:
    """No slot came in time: a key's own is 429, the server's 503."""
    busy = f"as many are running, and none ended within {waited_s:g} s"
    if slots.scope == "key":
        text = f"{_who(slots)} may have {slots.limit} requests at a time: {busy}. Wait for one to end."
        return _after(RateLimited(text), retry_s)
    return _after(
        Overloaded(f"The server answers {slots.limit} requests at a time: {busy}. Try again later."), retry_s
    )


def queue_full(length: int, retry_s: float) -> Overloaded:
    """Too many wait already."""
    text = f"{length} requests wait already, and no more may. Try again later."
    return _after(Overloaded(text), retry_s)


def rate_headers(ask: Ask, levels: tuple[Level, ...]) -> Headers:
    """`x-ratelimit-*` of requests and tokens: the key's own limit where it has one, else the server's."""
    headers: Headers = []
    shown: set[str] = set()
    for rate, level in zip(ask.rates, levels, strict=True):
        if rate.kind in shown:
            continue
        shown.add(rate.kind)
        for name, value in (
            ("limit", str(rate.limit)),
            ("remaining", str(max(0, rate.limit - level.used))),
            ("reset", duration(level.reset_s)),
        ):
            headers.append((f"x-ratelimit-{name}-{rate.kind}".encode(), value.encode()))
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: 0s, 20ms, 17.2s, 1m0.5s."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms" if seconds else "0s"
    tenths = math.ceil(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    return f"{minutes}m{rest / 10:g}s" if minutes else f"{rest / 10:g}s"


def _after(error: E, seconds: float) -> E:
    """`seconds` 0: nothing is known, and the kind of error says how long."""
    if seconds:
        error.retry_after = min(LONGEST_RETRY_S, math.ceil(seconds))
    return error


def _who(what: Rate | Slots, *, first: bool = True) -> str:
    if what.scope == "key":
        return "This key" if first else "this key"
    return "All requests to this server together" if first else "all requests to this server together"
