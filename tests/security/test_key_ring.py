"""Keys in memory: what a change in the database does and when, guessing, and a database that fails."""

import asyncio
import hmac
import sqlite3
import time
import tracemalloc
from contextlib import closing
from typing import Any

import pytest

from app import keys as ring_module
from app.errors import Unauthorized
from app.store.database import upgrade_database
from tests.app.conftest import Serve, execute, new_postgres
from tests.app.fakes import fake_models
from tests.app.test_api import BODY, assert_error
from tests.faults.figures import Figure, count, say
from tests.security.conftest import add_key, bearer, revoke_key, unknown_key

MODELS = "/v1/models"


async def until(client: Any, key: str | None, status: int, within_s: float) -> float:
    """Ask until the answer has this status, and say how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while (await client.get(MODELS, headers=bearer(key) if key else {})).status_code != status:
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_revoked_key_is_refused_within_the_documented_time(serve: Serve, database: str) -> None:
    """With the server's own times, in every server of a database; a new key works at once."""
    stays, first = await add_key(database), await add_key(database)
    clients = [await serve(fake_models(), database=database) for _ in range(2)]
    slowest, times = 0.0, count(10, 1)
    for _ in range(times):
        key = await add_key(database)
        for client in clients:
            assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
        await revoke_key(database, key)
        took = await asyncio.gather(*(until(client, key, 401, 10) for client in clients))
        slowest = max(slowest, *took)
        assert "revoked" in (await clients[0].get(MODELS, headers=bearer(key))).json()["error"]["message"]
    for key in (stays, first):
        assert (await clients[0].get(MODELS, headers=bearer(key))).status_code == 200
    bound = ring_module.REVOKED_WITHIN_S
    what = f"a revoked key is refused, two servers ({database.partition(':')[0]})"
    measured = f"{times} of {times}, slowest {slowest:.1f} s"
    say(Figure(12, what, measured, f"all, within {bound:g} s", slowest <= bound))


async def test_a_key_expires_to_the_second(serve: Serve, sqlite: str) -> None:
    client = await serve(fake_models(), database=sqlite, require_keys="always")
    key, made = await add_key(sqlite, expires_in=4.0), time.monotonic()
    await until(client, key, 200, 3)
    await until(client, key, 401, 6)
    assert 3.9 < time.monotonic() - made < 5.0
    assert "expired" in (await client.get(MODELS, headers=bearer(key))).json()["error"]["message"]


async def test_what_became_of_a_key_is_told_to_nobody_without_its_secret(serve: Serve, sqlite: str) -> None:
    key = await add_key(sqlite, expires_in=-1)
    client = await serve(fake_models(), database=sqlite)
    guess = key[:-43] + unknown_key()[-43:]
    told = [(await client.get(MODELS, headers=bearer(k))).json()["error"] for k in (guess, unknown_key())]
    assert told[0] == told[1]


async def test_an_open_server_closes_with_its_first_key_and_stays_closed(
    serve: Serve, sqlite: str, quick: None
) -> None:
    """Also after the last key is revoked, and after a restart."""
    client = await serve(fake_models(), database=sqlite)
    assert (await client.post("/v1/improve", json=BODY)).status_code == 200
    key = await add_key(sqlite)
    await until(client, None, 401, 3)
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
    await revoke_key(sqlite, key)
    await until(client, key, 401, 3)
    restarted = await serve(fake_models(), database=sqlite)
    for one in (client, restarted):
        assert_error(await one.get(MODELS), 401, "invalid_api_key")


async def test_guesses_cost_few_looks_and_no_memory(serve: Serve, sqlite: str, monkeypatch: Any) -> None:
    """However many come, the table is read once each PAUSE_S for all of them, and none is remembered."""
    key = await add_key(sqlite)
    client = await serve(fake_models(), database=sqlite)
    ring = client.app.state.keys
    looks, rows = 0, ring._table.rows

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await rows()

    monkeypatch.setattr(ring._table, "rows", counted)
    monkeypatch.setattr(ring_module, "PAUSE_S", 0.05)
    request: dict[str, Any] = {"path": MODELS, "method": "GET"}

    async def guess() -> None:
        request["headers"] = [(b"authorization", b"Bearer " + unknown_key().encode())]
        with pytest.raises(Unauthorized):
            await ring.admit(request)

    tracemalloc.start()
    try:
        await asyncio.gather(*(guess() for _ in range(500)))
        looks, began = 0, time.monotonic()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            await asyncio.gather(*(guess() for _ in range(500)))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert looks <= (time.monotonic() - began) / ring_module.PAUSE_S + 1
    assert len(ring._keys) == 1
    assert grown < 300_000, "75 bytes a guess: less than its id alone would take"
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200


async def test_a_key_made_while_a_look_runs_works(serve: Serve, sqlite: str, monkeypatch: Any) -> None:
    """Who comes while the table is read waits for the next reading: this one may be too early for the key."""
    await add_key(sqlite)
    client = await serve(fake_models(), database=sqlite)
    ring, slow = client.app.state.keys, asyncio.Event()
    rows = ring._table.rows

    async def read_then_wait() -> Any:
        found = await rows()
        slow.set()
        await asyncio.sleep(0.2)
        return found

    monkeypatch.setattr(ring._table, "rows", read_then_wait)
    ring._wanted.set()
    await slow.wait()
    key = await add_key(sqlite)
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200


async def test_every_comparison_of_secrets_takes_constant_time(
    serve: Serve, sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest reaches no `==` and no search, only `hmac.compare_digest`."""
    key, given = await add_key(sqlite), "Zq8mW2xTn5LcRv9KbJd4hYp7GfSaEeUi"
    client = await serve(fake_models(), database=sqlite, api_keys=f"ops {given}")
    compared: list[Any] = []
    compare = hmac.compare_digest

    def watched(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    guess = key[:-43] + unknown_key()[-43:]
    for asked, status in ((key, 200), (key[:-1] + "!", 401), (guess, 401), (given, 200)):
        compared.clear()
        assert (await client.get(MODELS, headers=bearer(asked))).status_code == status
        assert compared and all(len(a) == len(b) == 32 for a, b in compared)


async def test_while_the_database_is_down_known_keys_go_on_for_a_bounded_time(
    serve: Serve, postgres_cluster: str, quick: None, caplog: Any
) -> None:
    """Unknown ones get 503, never in. Afterwards everything is as before."""
    url = await new_postgres(postgres_cluster)
    await upgrade_database(url)
    name = url.split("/")[3].split("?")[0]
    key = await add_key(url)
    client = await serve(fake_models(), database=url, store_timeout_s=2, keys_outage_s=5)
    client.app.state.keys._outage_s = 4
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    await execute(postgres_cluster, end)
    down = time.monotonic()
    await until(client, unknown_key(), 503, 10)
    assert_error(await client.get(MODELS, headers=bearer(unknown_key())), 503, "keys_unavailable")
    assert_error(await client.get(MODELS), 401, "invalid_api_key")
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
    assert (await client.get("/health/ready")).status_code == 200
    await until(client, key, 503, 15)
    assert 3.5 < time.monotonic() - down < 15
    ready = await client.get("/health/ready")
    assert "API keys" in ready.json()["reasons"][0]
    assert ready.headers["retry-after"]
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await until(client, key, 200, 15)
    assert (await client.get("/health/ready")).status_code == 200
    assert caplog.text.count("API keys cannot be read") == 1
    assert 'pit_key_refusals_total{reason="unavailable"}' in (await admin_metrics(client, url))


async def admin_metrics(client: Any, url: str) -> str:
    answer = await client.get("/metrics", headers=bearer(await add_key(url, "metrics")))
    assert answer.status_code == 200
    return str(answer.text)


@pytest.mark.parametrize("mode", ["auto", "always"])
async def test_a_database_that_is_down_at_the_start_opens_nothing(
    serve: Serve, postgres_cluster: str, quick: None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there are keys is not known, so nobody is let in."""
    monkeypatch.setattr("app.store.store.RECHECK_S", 0.1)
    url = await new_postgres(postgres_cluster)
    await upgrade_database(url)
    name = url.split("/")[3].split("?")[0]
    key = await add_key(url)
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    client = await serve(fake_models(), database=url, store_timeout_s=0.3, require_keys=mode)
    for asked in (key, unknown_key()):
        assert_error(await client.get(MODELS, headers=bearer(asked)), 503, "keys_unavailable")
    assert (await client.post("/v1/improve", json=BODY)).status_code in (401, 503)
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await until(client, key, 200, 5)
    assert_error(await client.post("/v1/improve", json=BODY), 401, "invalid_api_key")


async def test_a_locked_database_holds_up_nobody(serve: Serve, tmp_path: Any, quick: None) -> None:
    url = f"sqlite:///{tmp_path}/pit.db"
    key = await add_key(url)
    client = await serve(fake_models(), database=url, store_timeout_s=60)
    with closing(sqlite3.connect(tmp_path / "pit.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(20):
            assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
            await asyncio.sleep(0.02)
        assert_error(await client.get(MODELS, headers=bearer(unknown_key())), 401, None)
        assert time.monotonic() - began < 25  # a single wait for the lock would be 30 s
        other.execute("ROLLBACK")


async def test_keys_of_the_settings_beside_the_databases(serve: Serve, sqlite: str, tmp_path: Any) -> None:
    """Also without any database; limits and scopes as they are written; one name is one owner."""
    file = tmp_path / "keys"
    first, second, third = (unknown_key() for _ in range(3))
    limits = "requests_per_minute=60 concurrency=2"
    file.write_text(f"# of the operations\n\nops {first} metrics {limits}\nci {second}\n")
    for database in ("none", sqlite):
        client = await serve(fake_models(), database=database, api_keys_file=file, api_keys=f"ci {third}; ")
        assert_error(await client.get(MODELS), 401, "invalid_api_key")
        assert (await client.get("/metrics", headers=bearer(first))).status_code == 200
        assert_error(await client.post("/v1/improve", json=BODY, headers=bearer(first)), 403, None)
        for key in (second, third):
            assert (await client.post("/v1/improve", json=BODY, headers=bearer(key))).status_code == 200
        given = {key.identity.owner: key.identity for key in client.app.state.keys._given}
        assert (given["env:ops"].limits.requests_per_minute, given["env:ops"].limits.concurrency) == (60, 2)
        assert set(given) == {"env:ops", "env:ci"}
        assert_error(await client.get(MODELS, headers=bearer(unknown_key())), 401, None)
    key = await add_key(sqlite)
    assert (await client.get(MODELS, headers=bearer(key))).status_code == 200
