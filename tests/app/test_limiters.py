"""The same of both limiters: in memory, and in a real Redis. Windows of a second, so that they can pass."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from app.limits.asks import Ask, Grant, Limiter, Rate, Refusal, Slots
from app.limits.local import LocalLimiter
from app.limits.shared import SharedLimiter

WINDOW_S = 0.9


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest) -> AsyncGenerator[Limiter, None]:
    if request.param == "memory":
        yield LocalLimiter(window_s=WINDOW_S)
        return
    shared = SharedLimiter(request.getfixturevalue("redis"), window_s=WINDOW_S, lease_s=2)
    shared.start()
    yield shared
    await shared.close()


def ask(
    requests: int | None = None, tokens: int | None = None, slots: int | None = None, amount: int = 10
) -> Ask:
    """A request of a server with these limits."""
    rates = []
    if requests is not None:
        rates.append(Rate("total:requests", "total", "requests", requests, 1))
    if tokens is not None:
        rates.append(Rate("total:tokens", "total", "tokens", tokens, amount))
    return Ask(tuple(rates), (Slots("total:slots", "total", slots),) if slots else ())


async def granted(limiter: Limiter, asked: Ask) -> Grant:
    reply = await limiter.admit(asked)
    assert isinstance(reply, Grant), reply
    return reply


async def refused(limiter: Limiter, asked: Ask) -> Refusal:
    reply = await limiter.admit(asked)
    assert isinstance(reply, Refusal), reply
    return reply


async def settled(limiter: Limiter) -> None:
    """`settle` has been done."""
    if isinstance(limiter, SharedLimiter):
        await asyncio.gather(*limiter._tasks)


async def test_a_rate_is_kept_and_comes_back_when_it_was_said(limiter: Limiter) -> None:
    asked = ask(requests=3)
    for n in (1, 2, 3):
        (level,) = (await granted(limiter, asked)).levels
        assert level.used == n
        assert 0.9 * WINDOW_S < level.reset_s <= WINDOW_S * 61 / 60
    refusal = await refused(limiter, asked)
    assert refusal.by == asked.rates[0]
    assert refusal.levels[0].used == 3, "a refusal takes nothing"
    said = time.monotonic()
    while isinstance(await limiter.admit(asked), Refusal):
        await asyncio.sleep(0.005)
    assert refusal.wait_s - 0.005 <= time.monotonic() - said < refusal.wait_s + 2


async def test_tokens_are_charged_and_what_was_not_used_comes_back(limiter: Limiter) -> None:
    first = await granted(limiter, ask(tokens=100, amount=60))
    refusal = await refused(limiter, ask(tokens=100, amount=41))
    assert refusal.by.name == "total:tokens" and refusal.wait_s > 0
    second = await granted(limiter, ask(tokens=100, amount=40))
    for grant, used in ((first, 7), (second, 45)):  # the second used more than it was charged
        limiter.settle(grant, used)
    await settled(limiter)
    (level,) = (await granted(limiter, ask(tokens=100, amount=1))).levels
    assert level.used == 7 + 45 + 1


async def test_a_refund_after_its_minute_gives_nothing(limiter: Limiter) -> None:
    old = await granted(limiter, ask(tokens=100, amount=60))
    await asyncio.sleep(WINDOW_S * 62 / 60)
    await granted(limiter, ask(tokens=100, amount=30))
    limiter.settle(old, 0)
    await settled(limiter)
    assert (await granted(limiter, ask(tokens=100, amount=1))).levels[0].used == 31


async def test_the_window_slides(limiter: Limiter) -> None:
    """What is older than a window makes room, what is younger stays."""
    asked = ask(requests=2)
    await granted(limiter, asked)
    await asyncio.sleep(0.6 * WINDOW_S)
    await granted(limiter, asked)
    await asyncio.sleep(0.5 * WINDOW_S)
    assert (await granted(limiter, asked)).levels[0].used == 2
    await refused(limiter, asked)


async def test_all_of_an_ask_is_taken_or_nothing(limiter: Limiter) -> None:
    both = ask(requests=10, tokens=100, slots=2, amount=60)
    held = await granted(limiter, both)
    assert (await refused(limiter, both)).by.name == "total:tokens"
    small = ask(requests=10, tokens=100, slots=2, amount=1)
    await granted(limiter, small)
    refusal = await refused(limiter, small)
    assert refusal.by.name == "total:slots"
    assert [level.used for level in refusal.levels] == [2, 61]
    limiter.settle(held, 60)
    await settled(limiter)
    assert [level.used for level in (await granted(limiter, small)).levels] == [3, 62]


async def test_the_longest_wait_is_said(limiter: Limiter) -> None:
    """Of two rates that refuse, the one that refuses longer: a retry after it succeeds."""
    await granted(limiter, ask(tokens=50, amount=50))
    await asyncio.sleep(WINDOW_S / 3)
    await granted(limiter, ask(requests=1))
    refusal = await refused(limiter, ask(requests=1, tokens=50, amount=1))
    assert refusal.by.name == "total:requests"
    await asyncio.sleep(refusal.wait_s + 0.02)
    await granted(limiter, ask(requests=1, tokens=50, amount=1))


async def test_what_was_never_served_was_never_asked(limiter: Limiter) -> None:
    asked = ask(requests=1, tokens=10, slots=1)
    limiter.settle(await granted(limiter, asked), None)
    await settled(limiter)
    assert [level.used for level in (await granted(limiter, asked)).levels] == [1, 10]


async def test_keys_do_not_touch_each_other(limiter: Limiter) -> None:
    for name in ("a", "b"):
        rate = Rate(f"key:{name}:tokens", "key", "tokens", 10, 10)
        asked = Ask((rate,), (Slots(f"key:{name}:slots", "key", 1),))
        await granted(limiter, asked)
        assert (await refused(limiter, asked)).by == rate
        free = Ask((), asked.slots)
        assert (await refused(limiter, free)).by == free.slots[0]


async def test_side_by_side_no_more_than_the_limit_get_in(limiter: Limiter) -> None:
    for asked, fit in ((ask(requests=17), 17), (ask(slots=5), 5)):
        replies = await asyncio.gather(*[limiter.admit(asked) for _ in range(60)])
        assert sum(isinstance(reply, Grant) for reply in replies) == fit


async def test_a_cancelled_admission_takes_nothing(limiter: Limiter) -> None:
    asked = ask(requests=1, slots=1)
    for pause in (0.0, 0.0, 0.0005, 0.001):
        task = asyncio.create_task(limiter.admit(asked))
        await asyncio.sleep(pause)
        if not task.cancel() and isinstance(reply := task.result(), Grant):
            limiter.settle(reply, None)
        await asyncio.gather(task, return_exceptions=True)
    for _ in range(3):  # what was on its way is taken back when it arrives
        await asyncio.sleep(0.02)
        await settled(limiter)
    await granted(limiter, asked)


async def test_memory_is_given_back(limiter: Limiter, request: pytest.FixtureRequest) -> None:
    """A key that is not seen for a minute costs nothing any more."""
    for number in range(20):
        rate = Rate(f"key:{number}:requests", "key", "requests", 5, 1)
        grant = await granted(limiter, Ask((rate,), (Slots(f"key:{number}:slots", "key", 5),)))
        limiter.settle(grant, 0)
    await settled(limiter)
    await asyncio.sleep(WINDOW_S * 62 / 60)
    if isinstance(limiter, SharedLimiter):
        assert await limiter.line.redis.keys("*") == []
        return
    assert isinstance(limiter, LocalLimiter)
    limiter.settle(await granted(limiter, ask(requests=1, slots=1)), None)
    assert list(limiter.windows) == ["total:requests"] and not limiter.taken


async def test_a_dead_servers_slots_come_back(redis: str) -> None:
    """It does not renew its leases; one that lives does, for as long as it takes."""
    asked = ask(slots=2)
    dead, alive = (SharedLimiter(redis, lease_s=0.8) for _ in range(2))
    alive.start()
    await granted(dead, asked)
    await granted(alive, asked)
    await asyncio.sleep(0.2)
    assert isinstance(await alive.admit(asked), Refusal)
    await asyncio.sleep(0.8)
    await granted(alive, asked)
    assert isinstance(await alive.admit(asked), Refusal), "the living one's lease was renewed"
    for limiter in (dead, alive):
        await limiter.close()


async def test_a_lease_that_has_expired_is_not_refunded_twice(redis: str) -> None:
    limiter = SharedLimiter(redis, lease_s=0.2)
    asked = ask(tokens=100, slots=1, amount=50)
    grant = await granted(limiter, asked)
    limiter.settle(grant, 20)
    await settled(limiter)
    limiter.settle(grant, 0)
    await settled(limiter)
    assert (await granted(limiter, asked)).levels[0].used == 70
    await limiter.close()


async def test_a_redis_that_has_forgotten_owes_nothing(redis: str) -> None:
    """A charge that is not there any more is not refunded: that would be room for others."""
    limiter = SharedLimiter(redis)
    grant = await granted(limiter, ask(tokens=100, amount=60))
    await limiter.line.redis.flushall()
    limiter.settle(grant, 0)
    await settled(limiter)
    assert (await granted(limiter, ask(tokens=100, amount=30))).levels[0].used == 30
    await limiter.close()
