"""Redis is killed, hangs, or was never there: requests are answered all the same, within the same limits, and
the server says that it counts alone."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from app.doctor.configuration import load
from app.limits import fallback
from app.settings import SettingsError
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, fake_models
from tests.app.redis_server import RedisServer, redis_server
from tests.app.test_telemetry import value

SCORE = {
    "messages": [{"role": "user", "content": "What is the price ?"}],
    "candidate": "It is 24 .",
    "baseline": "no",
}
CHAT = {"model": "policy", "messages": SCORE["messages"], "max_tokens": 30}


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    monkeypatch.setattr(fallback, "RETRY_S", 0.05)
    try:
        with redis_server() as server:
            yield server
    except RuntimeError as error:
        pytest.skip(str(error))


async def degraded(client, wanted: bool) -> list[str]:  # type: ignore[no-untyped-def]
    """What /health/ready says, once it says it (not), within two seconds; the metric says the same."""
    async with asyncio.timeout(2):
        while True:
            answer = await client.get("/health/ready")
            assert answer.status_code == 200, "without its Redis a server is still ready"
            found: list[str] = answer.json()["degraded"]
            if bool(found) == wanted:
                text = (await client.get("/metrics")).text
                assert value(text, "pit_limits_degraded") == float(wanted)
                return found
            await asyncio.sleep(0.02)


async def test_a_redis_that_dies_and_comes_back(serve: Serve, mortal: RedisServer) -> None:
    """The same limits, counted here meanwhile: three again, and no more."""
    client = await serve(limits_url=mortal.url, requests_per_minute=3)
    for status in (200, 200, 200, 429):
        assert (await client.post("/v1/score", json=SCORE)).status_code == status
    mortal.stop()
    for status in (200, 200, 200, 429):
        assert (await client.post("/v1/score", json=SCORE)).status_code == status
    (said,) = await degraded(client, True)
    assert said.startswith("limits: their Redis cannot be used (") and "counts alone" in said
    mortal.start()
    assert await degraded(client, False) == []
    answer = await client.post("/v1/score", json=SCORE)
    assert answer.headers["x-ratelimit-remaining-requests"] == "2", "it has forgotten, and counts again"


async def test_a_redis_that_hangs_costs_a_quarter_of_a_second_once(serve: Serve, mortal: RedisServer) -> None:
    client = await serve(limits_url=mortal.url, requests_per_minute=1000)
    assert mortal.process
    os.kill(mortal.process.pid, signal.SIGSTOP)
    try:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            assert (await client.post("/v1/score", json=SCORE)).status_code == 200
            times.append(time.perf_counter() - started)
        assert 0.2 < times[0] < 1
        assert max(times[1:]) < 0.2
        await degraded(client, True)
    finally:
        os.kill(mortal.process.pid, signal.SIGCONT)
    await degraded(client, False)


async def test_slots_and_tokens_of_requests_that_outlive_an_outage_come_back(
    serve: Serve, mortal: RedisServer
) -> None:
    """Redis hangs while a request comes and another ends: what it counts when it wakes, and what could not be
    given back, is given back afterwards, once."""
    engine = FakeEngine(script=lambda _: "word " * 10, delay_s=0.06)
    client = await serve(
        fake_models(engine), limits_url=mortal.url, tokens_per_minute=1000, max_concurrency=2
    )
    limiter = client.app.state.limits.limiter
    task = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    while not engine.running:
        await asyncio.sleep(0.001)
    assert mortal.process
    os.kill(mortal.process.pid, signal.SIGSTOP)
    assert (await client.post("/v1/score", json=SCORE)).status_code == 200
    answer = await task
    assert answer.status_code == 200, "the answer does not wait for Redis"
    await degraded(client, True)
    os.kill(mortal.process.pid, signal.SIGCONT)
    await degraded(client, False)
    await asyncio.sleep(0.1)
    used = answer.json()["usage"]["total_tokens"]
    counted = sum(map(int, await limiter.shared.line.redis.hvals("{pit}:total:tokens")))
    # The score was counted by Redis too when it woke: its slot is free, its charge leaves in a minute.
    assert counted > used
    assert await limiter.shared.line.redis.zcard("{pit}:total:slots") == 0


async def test_a_redis_that_was_never_there(serve: Serve) -> None:
    client = await serve(limits_url="redis://127.0.0.1:9", requests_per_minute=1)
    for status in (200, 429):
        assert (await client.post("/v1/score", json=SCORE)).status_code == status
    await degraded(client, True)


def test_the_doctor_asks_redis(mortal: RedisServer) -> None:
    _, findings = load(None, {"limits_url": mortal.url, "port": 0})
    assert any(str(finding).count("their Redis answers") for finding in findings)
    mortal.stop()
    _, findings = load(None, {"limits_url": "redis://:secret@127.0.0.1:9", "port": 0})
    (said,) = [str(finding) for finding in findings if "their Redis" in str(finding)]
    assert "cannot be used (ConnectionError)" in said and "secret" not in said


def test_a_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, findings = load(None, {"limits_url": "redis://localhost"})
    assert any("pip install 'pit-serve[redis]'" in str(finding) for finding in findings)
    with pytest.raises(SettingsError, match="limits_url"):
        from app.limits.limits import Limits
        from app.settings import load_settings
        from app.telemetry import Telemetry

        Limits(load_settings(limits_url="redis://localhost"), Telemetry())
