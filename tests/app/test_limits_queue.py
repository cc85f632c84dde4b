"""The admission queue: order, turns, its bound, its deadline, and that nothing is lost on the way."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Overloaded, RateLimited
from app.limits.asks import Ask, Grant, Rate, Refusal, Slots
from app.limits.local import LocalLimiter
from app.limits.queue import AdmissionQueue
from app.telemetry import Telemetry
from tests.app.test_telemetry import value


class Slow(LocalLimiter):
    """Answers a moment later, as Redis does."""

    async def admit(self, ask: Ask) -> Grant | Refusal:
        await asyncio.sleep(0.001)
        return await super().admit(ask)


def queue(limiter: LocalLimiter | None = None, length: int = 100, timeout_s: float = 5) -> AdmissionQueue:
    return AdmissionQueue(limiter or LocalLimiter(), Telemetry(), length=length, timeout_s=timeout_s)


def ask(lane: str = "", slots: int = 1, own: int | None = None, rate: int | None = None) -> Ask:
    total = Slots("total:slots", "total", slots)
    rates = (Rate("total:requests", "total", "requests", rate, 1),) if rate else ()
    return Ask(rates, (Slots(f"key:{lane}:slots", "key", own), total) if own else (total,), lane)


async def entered(waiting: AdmissionQueue, lanes: Sequence[str], order: list[str], **limits: int) -> None:
    """Requests of these lanes arrive one after the other; each notes itself, works a moment and leaves."""

    async def request(number: int, lane: str) -> None:
        grant = await waiting.admit(ask(lane, **limits))
        assert isinstance(grant, Grant)
        order.append(f"{lane}{number}")
        await asyncio.sleep(0.002)
        grant.limiter.settle(grant, 0)
        waiting.freed()

    await asyncio.gather(*[request(number, lane) for number, lane in enumerate(lanes)])


@pytest.mark.parametrize("limiter", [LocalLimiter, Slow])
async def test_first_come_first_served(limiter: type[LocalLimiter]) -> None:
    order: list[str] = []
    await entered(queue(limiter()), "a" * 20, order)
    assert order == [f"a{n}" for n in range(20)]


@given(st.lists(st.sampled_from("abc"), max_size=25), st.integers(1, 4), st.integers(1, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_in_every_lane_first_come_first_served(lanes: list[str], slots: int, own: int, slow: bool) -> None:
    """Whatever lanes requests come in, and however many slots there are: all are served, a lane in order."""
    order: list[str] = []
    asyncio.run(entered(queue(Slow() if slow else LocalLimiter()), lanes, order, slots=slots, own=own))
    assert sorted(order) == sorted(f"{lane}{number}" for number, lane in enumerate(lanes))
    for lane in "abc":
        numbers = [int(name[1:]) for name in order if name[0] == lane]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("limiter", [LocalLimiter, Slow])
async def test_lanes_take_turns(limiter: type[LocalLimiter]) -> None:
    """A key that sent twenty requests at once does not keep the others out: theirs are next but one."""
    order: list[str] = []
    await entered(queue(limiter()), "a" * 20 + "bbcc", order)
    assert [name[0] for name in order[1:7]] == ["a", "b", "c", "a", "b", "c"]
    assert [name for name in order if name[0] == "a"] == [f"a{n}" for n in range(20)]


async def test_a_keys_own_slots_keep_only_its_own_requests_waiting() -> None:
    waiting = queue()
    held = await waiting.admit(ask("a", slots=10, own=1))
    blocked = asyncio.create_task(waiting.admit(ask("a", slots=10, own=1)))
    await asyncio.sleep(0.01)
    assert isinstance(await waiting.admit(ask("b", slots=10, own=1)), Grant)
    assert not blocked.done()
    assert isinstance(held, Grant)
    waiting.limiter.settle(held, 0)
    waiting.freed()
    assert isinstance(await blocked, Grant)


async def test_who_comes_later_does_not_pass_those_that_wait() -> None:
    waiting = queue()
    held = await waiting.admit(ask())
    first = asyncio.create_task(waiting.admit(ask()))
    await asyncio.sleep(0.01)
    assert isinstance(held, Grant)
    waiting.limiter.settle(held, 0)  # free, and not yet known to the queue
    second = asyncio.create_task(waiting.admit(ask()))
    waiting.freed()
    await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert first.done() and not second.done()
    second.cancel()


async def test_the_deadline_and_the_bound_refuse() -> None:
    """503 for the server's slots, 429 for a key's own; both say when to come again."""
    waiting = queue(length=2, timeout_s=0.15)
    await waiting.admit(ask("b", slots=9, own=1))
    await waiting.admit(ask("a", slots=2))
    tasks = [asyncio.create_task(waiting.admit(ask(lane, slots=2))) for lane in "aaa"]
    await asyncio.sleep(0.02)
    assert waiting.waiting == 2
    with pytest.raises(Overloaded, match="2 requests wait already") as full:
        await tasks[2]
    assert full.value.retry_after and full.value.retry_after >= 1
    with pytest.raises(Overloaded, match=r"answers 2 requests at a time.*within 0.15 s"):
        await tasks[0]
    with pytest.raises(Overloaded):
        await tasks[1]
    with pytest.raises(RateLimited, match="This key may have 1 requests at a time"):
        await waiting.admit(ask("b", slots=9, own=1))
    assert waiting.waiting == 0 and not waiting._lanes
    text = waiting.telemetry.render().decode()
    assert value(text, "pit_limited_total", reason="queue_full", scope="total") == 1
    assert value(text, "pit_limited_total", reason="queue_timeout", scope="total") == 2
    assert value(text, "pit_limited_total", reason="queue_timeout", scope="key") == 1
    assert value(text, "pit_admission_queue_depth") == 0


async def test_a_full_queue_turns_away_who_has_most_in_it() -> None:
    waiting = queue(length=4)
    await waiting.admit(ask("a"))
    many = [asyncio.create_task(waiting.admit(ask("a"))) for _ in range(4)]
    await asyncio.sleep(0.01)
    one = asyncio.create_task(waiting.admit(ask("b")))
    await asyncio.sleep(0.01)
    assert many[3].done() and isinstance(many[3].exception(), Overloaded)
    assert not one.done() and waiting.waiting == 4
    for task in (*many, one):
        task.cancel()
    await asyncio.gather(*many, one, return_exceptions=True)
    assert waiting.waiting == 0


async def test_a_rate_that_is_used_up_refuses_those_that_wait() -> None:
    waiting = queue()
    held = await waiting.admit(ask(rate=1))
    task = asyncio.create_task(waiting.admit(ask(rate=2)))
    late = asyncio.create_task(waiting.admit(ask(rate=2)))
    await asyncio.sleep(0.01)
    assert isinstance(held, Grant) and not task.done()
    waiting.limiter.settle(held, 0)
    waiting.freed()
    assert isinstance(await task, Grant)
    refusal = await late
    assert isinstance(refusal, Refusal) and isinstance(refusal.by, Rate)


@pytest.mark.parametrize("limiter", [LocalLimiter, Slow])
async def test_whoever_leaves_at_whatever_moment_takes_no_slot_along(limiter: type[LocalLimiter]) -> None:
    """Two hundred requests for three slots, half of which leave: afterwards three slots are free."""
    counting = limiter()
    waiting = queue(counting, length=1000)
    inside = most = 0

    async def request(number: int) -> None:
        nonlocal inside, most
        grant = await waiting.admit(ask(f"{number % 3}", slots=3))
        assert isinstance(grant, Grant)
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(0.002)
        finally:
            inside -= 1
            grant.limiter.settle(grant, 0)
            waiting.freed()

    tasks = [asyncio.create_task(request(number)) for number in range(200)]
    for number, task in enumerate(tasks):
        if number % 2:
            await asyncio.sleep(0.0007)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(not task.cancelled() for task in tasks) >= 100
    await asyncio.sleep(0.02)
    assert most == 3
    assert counting.taken["total:slots"] == 0 and waiting.waiting == 0
