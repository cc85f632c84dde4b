"""Schema, retention, and what a server finds of others that died."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.errors import StoreError
from app.settings import load_settings
from app.store.database import MIGRATIONS, Database, parse_url, upgrade_database
from app.store.tables import HEAD, metadata
from app.store.upkeep import STALE_S, Upkeep
from tests.app.conftest import Serve, execute, new_postgres
from tests.app.fakes import fake_models
from tests.app.test_api import events_of
from tests.app.test_store import BODY, MESSAGES


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """The URL of a database without any schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/pit.db"
    return await new_postgres(request.getfixturevalue("postgres_cluster"))


async def at_revision(url: str, revision: str) -> None:
    """A database of an earlier version."""
    old = Database(url, timeout_s=30)
    if old.is_sqlite:
        Path(old.url.database or "").parent.mkdir(parents=True)
    await old.upgrade(revision)
    await old.close()


async def test_migrations_make_what_the_code_expects(empty: str) -> None:
    """From nothing to the newest revision; a second time changes nothing; then the tables are the code's."""
    assert "upgraded from empty" in await upgrade_database(empty)
    assert "is at revision" in await upgrade_database(empty)
    database = Database(empty)
    await database.open()
    async with database.reading() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c), metadata)
        )
    await database.close()
    assert differences == []


def test_the_newest_revision_is_the_one_that_the_server_asks_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_runs_of_an_earlier_version_are_listed_and_stay_as_they_are(serve: Serve, empty: str) -> None:
    """What a list shows of them is read from what they hold."""
    await at_revision(empty, "0005")
    steps = [{"accepted": True, "win_probability": 0.75}, {"accepted": False, "win_probability": 0.25}]
    result = json.dumps({"improved": True, "iterations": steps})
    for number, (state, ended) in enumerate({"completed": result, "failed": None, "running": None}.items()):
        request = json.dumps({"messages": [{"role": "user", "content": f"It's \u0000 question {number}"}]})
        values = [f"imp_{number}", "s", 1, number, state, 1, request.replace("'", "''"), ended]
        row = ", ".join("NULL" if value is None else f"'{value}'" for value in values)
        columns = "id, server, alive, created, state, bytes, request, result"
        await execute(empty, f"INSERT INTO runs ({columns}) VALUES ({row})")
    before = await execute(empty, "SELECT id, request, result FROM runs ORDER BY id")
    await upgrade_database(empty)
    client = await serve(fake_models(), database=empty, retention_days=0)
    await client.post("/v1/improve", json=BODY)
    found = (await client.get("/v1/improve")).json()["data"]
    assert [(run["excerpt"], run["improved"], run["win_probability"]) for run in found[1:]] == [
        ("It's question 2", None, None), ("It's question 1", None, None), ("It's question 0", True, 0.75),
    ]  # fmt: skip
    assert found[0]["excerpt"] == MESSAGES[0]["content"]
    after = await execute(empty, "SELECT id, request, result FROM runs WHERE server = 's' ORDER BY id")
    assert after == before
    assert await execute(empty, "SELECT count(*) FROM runs WHERE excerpt IS NULL") == [(3,)]


async def test_servers_that_start_at_once_migrate_once(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/pit.db"
    databases = [Database(url, timeout_s=10) for _ in range(5)]
    await asyncio.gather(*(database.open() for database in databases))
    assert await execute(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]


async def test_a_schema_of_a_newer_version_is_refused(empty: str) -> None:
    await upgrade_database(empty)
    await execute(empty, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"9999.*newer"):
        await upgrade_database(empty)
    with pytest.raises(StoreError, match=r"9999.*newer"):
        await Database(empty).open()


async def test_postgresql_with_an_old_schema_is_not_ready_until_it_is_upgraded(
    serve: Serve, postgres_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be shared by many servers: none of them migrates it by itself."""
    monkeypatch.setattr("app.store.store.RECHECK_S", 0.05)
    url = await new_postgres(postgres_cluster)
    client = await serve(fake_models(), database=url)
    refused = await client.get("/health/ready")
    assert refused.status_code == 503
    assert "pit db upgrade --database postgresql://" in refused.json()["reasons"][0]
    assert "\npit_ready 0.0\n" in (await client.get("/metrics")).text
    answer = (await client.post("/v1/improve", json=BODY)).json()
    assert (answer["stop_reason"] is not None, answer["stored"]) == (True, False)
    await upgrade_database(url)
    async with asyncio.timeout(5):
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
    assert (await client.post("/v1/improve", json=BODY)).json()["stored"] is True


async def test_an_sqlite_file_that_cannot_be_used_is_a_failed_start(serve: Serve, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("not a database, and longer than the header of one " * 50)
    for place in (tmp_path / "file", tmp_path / "file" / "pit.db"):
        client = await serve(fake_models(), database=f"sqlite:///{place}")
        (why,) = (await client.get("/health/ready")).json()["reasons"]
        assert str(place) in why
        assert "--database" in why
        assert client.app.state.runtime.failure is not None


@pytest.mark.parametrize("url", ["", "mysql://a/b", "nonsense", "sqlite://", "sqlite:///:memory:", "://"])
def test_a_url_that_cannot_be_used_is_refused_with_advice(url: str) -> None:
    with pytest.raises(StoreError, match="database"):
        parse_url(url)


def test_a_password_is_never_shown() -> None:
    assert "secret" not in Database("postgresql://pit:secret@localhost/pit").name


async def test_the_default_is_a_file_of_the_user_s_own(
    serve: Serve, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIT_DATABASE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client = await serve(fake_models(), database=load_settings().database)
    assert (await client.post("/v1/improve", json=BODY)).json()["stored"] is True
    file = tmp_path / "state" / "pit-serve" / "pit.db"
    assert file.stat().st_mode & 0o77 == 0
    assert file.parent.stat().st_mode & 0o77 == 0
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_settings().database == "sqlite:////home/somebody/.local/state/pit-serve/pit.db"


def upkeep(client: Any, **limits: float | None) -> Upkeep:
    store = client.app.state.runs.store
    store.upkeep.max_age_s = limits.get("max_age_s")
    store.upkeep.max_bytes = limits.get("max_bytes")
    found: Upkeep = store.upkeep
    return found


async def ids(client: Any) -> list[str]:
    return [run["id"] for run in (await client.get("/v1/improve", params={"limit": 100})).json()["data"]]


async def test_old_runs_are_deleted_with_their_events(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    old, new = [(await client.post("/v1/improve", json=BODY)).json()["id"] for _ in range(2)]
    await execute(database, f"UPDATE runs SET finished = finished - 100 WHERE id = '{old}'")
    assert await upkeep(client, max_age_s=200).prune() == 0
    assert await upkeep(client, max_age_s=50).prune() == 1
    assert await ids(client) == [new]
    assert await execute(database, f"SELECT count(*) FROM run_events WHERE run_id = '{old}'") == [(0,)]


async def test_beyond_the_size_the_oldest_go_some_in_each_turn(
    serve: Serve, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(fake_models(), database=database)
    written = [(await client.post("/v1/improve", json=BODY)).json()["id"] for _ in range(6)]
    sizes = dict(await execute(database, "SELECT id, bytes FROM runs"))
    room = sum(sizes[run] for run in written[-2:])
    # As large as what is stored, within the allowance for a row.
    stored = "sum(length(request) + length(result)) + (SELECT sum(length(data)) FROM run_events)"
    ((text,),) = await execute(database, f"SELECT {stored} FROM runs")
    assert text <= sum(sizes.values()) < 2 * text
    monkeypatch.setattr("app.store.upkeep.PRUNE_BYTES", 2.5 * max(sizes.values()))
    keeper = upkeep(client, max_bytes=room)
    assert await keeper.prune() == 2
    assert await keeper.prune() == 2
    assert await keeper.prune() == 0
    assert await ids(client) == written[:-3:-1]
    monkeypatch.setattr("app.store.upkeep.PRUNE_BYTES", 1)
    assert await upkeep(client, max_bytes=1).prune() == 1, "one run goes, however large it is"


async def test_a_run_whose_server_died_has_failed(serve: Serve, database: str) -> None:
    """Not before its server was silent for long; then its followers see an end."""
    client = await serve(fake_models(), database=database)
    run_id = (await client.post("/v1/improve", json=BODY)).json()["id"]
    await execute(
        database, "UPDATE runs SET state = 'running', finished = NULL, result = NULL, server = 'other'"
    )
    await _forget_end(database)
    await upkeep(client).turn()
    assert (await client.get(f"/v1/improve/{run_id}")).json()["state"] == "running"
    follower = asyncio.create_task(client.get(f"/v1/improve/{run_id}/events"))
    await asyncio.sleep(0.1)
    assert not follower.done()
    await execute(database, f"UPDATE runs SET alive = {time.time() - STALE_S - 1}")
    await upkeep(client).turn()
    run = (await client.get(f"/v1/improve/{run_id}")).json()
    assert (run["state"], run["error"]["code"]) == ("failed", "server_stopped")
    async with asyncio.timeout(5):
        events = events_of((await follower).text)
    assert events[-1]["type"] == "run.failed"
    assert events[-1]["error"] == run["error"]
    assert events[-1]["sse_id"] == events[-2]["sse_id"] + 1


async def test_a_run_that_runs_is_alive(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    await client.post("/v1/improve", json=BODY)
    server = client.app.state.runs.store.writer.server
    await execute(database, f"UPDATE runs SET state = 'running', alive = 0, server = '{server}'")
    await upkeep(client).turn()
    ((alive,),) = await execute(database, "SELECT alive FROM runs")
    assert time.time() - alive < 5


async def test_sqlite_s_log_is_emptied_beside_the_writer(serve: Serve, tmp_path: Any) -> None:
    """By the upkeep, and not in the middle of a write that an answer waits for."""
    database = f"sqlite:///{tmp_path}/pit.db"
    client = await serve(fake_models(), database=database)
    await client.post("/v1/improve", json=BODY)

    def rows_in_the_file() -> int:
        # Read without its log: what has not been moved is not there.
        with closing(sqlite3.connect(f"file:{tmp_path}/pit.db?immutable=1", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    assert rows_in_the_file() == 0
    await upkeep(client).turn()
    assert rows_in_the_file() == 1


async def _forget_end(database: str) -> None:
    """The last event of the one run, away from the row that it shares with others."""
    ((number, data),) = await execute(database, "SELECT number, data FROM run_events")
    kept = data.rpartition("\n")[0].replace("'", "''")
    await execute(database, f"UPDATE run_events SET number = {number - 1}, data = '{kept}'")
