"""`Limits`: what every route that generates or scores passes. See docs/limits.md."""

import importlib.util
from types import TracebackType
from typing import Protocol

from pydantic import SecretStr

from app.limits.answers import never_fits, rate_headers, rate_limited
from app.limits.asks import Ask, Grant, Limiter, Rate, Refusal, Scope, Slots
from app.limits.local import LocalLimiter
from app.limits.queue import AdmissionQueue
from app.observe import current
from app.security import Identity, KeyLimits, caller
from app.settings import Settings, SettingsError
from app.telemetry import Telemetry

SMALL = 50
"""A request is small if so many of them fit into the limit of a minute."""


class Work(Protocol):
    """Something that costs tokens."""

    lower: str
    """What its sender can do where it may cost too much: a sentence."""

    async def worst_case(self, *, exact: bool) -> int:
        """Tokens that it may read and write at most. Not `exact`, the bound costs nothing and may be several
        times as high. Raises `BadRequest` and `EngineFailed`."""

    @property
    def tokens_used(self) -> int:
        """Tokens read and written so far."""


class Limits:
    """The limits of a server. `entry` gives the door for one request."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.total = KeyLimits(
            settings.requests_per_minute, settings.tokens_per_minute, settings.max_concurrency
        )
        self.each_key = KeyLimits(
            settings.key_requests_per_minute, settings.key_tokens_per_minute, settings.key_concurrency
        )
        self.limiter = _limiter(settings, telemetry)
        self.queue = AdmissionQueue(
            self.limiter, telemetry, length=settings.max_queue, timeout_s=settings.queue_timeout_s
        )

    def entry(self, work: Work, identity: Identity | None = None) -> "Entry":
        """`async with limits.entry(work):` around the work. `identity`: whose it is; the caller's by
        default."""
        return Entry(self, work, identity or caller())

    def start(self) -> None:
        """Begin what runs in the background."""
        if shared := getattr(self.limiter, "shared", None):
            shared.start()

    async def stop(self) -> None:
        """Settle what has ended; nothing is admitted any more."""
        await self.queue.close()
        await self.limiter.close()

    def degraded_because(self) -> list[str]:
        """Why limits do not hold over all servers now, fit to be shown."""
        problem: str | None = getattr(self.limiter, "problem", None)
        return [problem] if problem else []

    async def ask(self, identity: Identity, work: Work) -> Ask:
        """What this work takes. Raises `BadRequest` where it takes more than there ever is, and what
        `Work.worst_case` raises; that is asked only where tokens are limited."""
        rates: list[Rate] = []
        slots: list[Slots] = []
        limited = self._limits_of(identity)
        tokens = await _worst_case(work, [limits.tokens_per_minute for *_, limits in limited])
        for scope, name, limits in limited:
            if limits.requests_per_minute is not None:
                rates.append(Rate(f"{name}:requests", scope, "requests", limits.requests_per_minute, 1))
            if limits.tokens_per_minute is not None:
                rate = Rate(f"{name}:tokens", scope, "tokens", limits.tokens_per_minute, tokens)
                if tokens > rate.limit:
                    self.telemetry.limited.labels("never_fits", scope).inc()
                    raise never_fits(rate, work.lower)
                rates.append(rate)
            if limits.concurrency is not None:
                slots.append(Slots(f"{name}:slots", scope, limits.concurrency))
        return Ask(tuple(rates), tuple(slots), identity.owner or "")

    def settle(self, grant: Grant, used: int) -> None:
        """Give back what was not used."""
        self.limiter.settle(grant, used)
        self.queue.freed()
        self._count(_charged(grant.ask), used)

    def _limits_of(self, identity: Identity) -> list[tuple[Scope, str, KeyLimits]]:
        found: list[tuple[Scope, str, KeyLimits]] = []
        if identity.owner is not None:
            own, default = identity.limits, self.each_key
            key = KeyLimits(
                *(
                    getattr(default, name) if getattr(own, name) is None else getattr(own, name)
                    for name in KeyLimits.__slots__
                )
            )
            found.append(("key", f"key:{identity.owner}", key))
        return [*found, ("total", "total", self.total)]

    def _count(self, charged: int | None, used: int) -> None:
        if charged is None:
            return
        count = self.telemetry.limit_tokens
        if used > charged:
            count.labels("charged").inc(used - charged)
        else:
            count.labels("refunded").inc(charged - used)


class Entry:
    """One request's way through the limits: entered, it holds a slot and has paid its worst case; left, it
    has paid what it used, however it ended."""

    def __init__(self, limits: Limits, work: Work, identity: Identity) -> None:
        self.limits, self.work, self.identity = limits, work, identity
        self.grant: Grant | None = None

    async def __aenter__(self) -> None:
        """Raises `BadRequest`, `RateLimited` and `Overloaded`."""
        limits = self.limits
        ask = await limits.ask(self.identity, self.work)
        if not ask.rates and not ask.slots:
            return
        reply = await limits.queue.admit(ask)
        if state := current.get():
            state.headers = rate_headers(ask, reply.levels)
        if isinstance(reply, Refusal):
            assert isinstance(reply.by, Rate)
            limits.telemetry.limited.labels(reply.by.kind, reply.by.scope).inc()
            raise rate_limited(reply, reply.levels[ask.rates.index(reply.by)])
        self.grant = reply
        limits.telemetry.admitted.inc()
        if charged := _charged(ask):
            limits.telemetry.limit_tokens.labels("charged").inc(charged)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.grant:
            self.limits.settle(self.grant, self.work.tokens_used)
            self.limits.telemetry.admitted.dec()
            self.grant = None


def redis_problem(url: SecretStr) -> str | None:
    """Why Redis cannot be used, None where it answers. Waits for a second."""
    from redis import Redis

    from app.limits.line import UNREACHABLE, redis_url

    try:
        with Redis.from_url(redis_url(url.get_secret_value()), socket_timeout=1) as client:
            client.ping()
    except (*UNREACHABLE, ValueError) as error:
        return type(error).__name__
    return None


async def _worst_case(work: Work, limits: list[int | None]) -> int:
    """What is charged; 0 where no tokens are limited. Prompts are counted only where a rough bound would take
    more of a limit than is nothing to it."""
    given = [limit for limit in limits if limit is not None]
    if not given:
        return 0
    bound = await work.worst_case(exact=False)
    return bound if bound <= min(given) / SMALL else await work.worst_case(exact=True)


def check_limits(settings: Settings) -> None:
    """Raises `SettingsError` for limits that cannot be shared: the package is missing, or the URL is none."""
    if settings.limits_url is None:
        return
    if importlib.util.find_spec("redis") is None:
        raise SettingsError("limits_url needs the package redis: pip install 'pit-serve[redis]'")


def _charged(ask: Ask) -> int | None:
    """The worst case of an ask; None where tokens are not limited."""
    return next((rate.amount for rate in ask.rates if rate.kind == "tokens"), None)


def _limiter(settings: Settings, telemetry: Telemetry) -> Limiter:
    check_limits(settings)
    if settings.limits_url is None:
        return LocalLimiter()
    from app.limits.fallback import FallbackLimiter
    from app.limits.shared import SharedLimiter

    try:
        shared = SharedLimiter(settings.limits_url.get_secret_value(), lease_s=settings.limits_lease_s)
    except ValueError as error:
        raise SettingsError("limits_url is no address of a Redis; write redis://HOST:PORT") from error
    return FallbackLimiter(shared, LocalLimiter(), telemetry)
