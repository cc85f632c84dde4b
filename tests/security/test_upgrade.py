"""A database of the schema before keys, with runs in it, becomes one of this version, and loses nothing."""

import json
import time
from typing import Any

import pytest

from app.store.database import Database, upgrade_database
from app.store.tables import HEAD
from tests.app.conftest import Serve, execute, new_postgres
from tests.app.fakes import fake_models
from tests.app.test_api import BODY, assert_error
from tests.security.conftest import add_key, ask

RESULT = '{"id":"imp_1","response":"ä \\u0000 \U0001f642"}'
EVENTS = [
    (1, "run.created", '{"type":"run.created"}'),
    (2, "run.completed", f'{{"type":"run.completed","improvement":{RESULT}}}'),
]
COLUMNS = (
    "id, owner, server, alive, created, finished, state, cancel_requested, stop_reason, iterations, bytes,"
    " request, result, error"
)
KEPT = (f"SELECT {COLUMNS} FROM runs ORDER BY 1", "SELECT run_id, number, data FROM run_events ORDER BY 1, 2")


@pytest.fixture(params=["sqlite", "postgresql"])
async def old(request: pytest.FixtureRequest, sqlite: str, tmp_path: Any) -> str:
    """A database at revision 0001 with two runs, one of an owner."""
    url = sqlite
    if request.param == "postgresql":
        url = await new_postgres(request.getfixturevalue("postgres_cluster"))
    else:
        (tmp_path / "pit.db").touch()
    database = Database(url)
    await database.upgrade("0001")
    await database.close()
    assert await execute(url, "SELECT version_num FROM alembic_version") == [("0001",)]
    now = time.time()
    for number, owner in ((1, "NULL"), (2, "'somebody'")):
        run_id = f"imp_{number:032x}"
        await execute(
            url,
            "INSERT INTO runs (id, owner, server, alive, created, finished, state, bytes, request, result)"
            f" VALUES ('{run_id}', {owner}, 'a/1', {now}, {now}, {now}, 'completed', 300,"
            f" '{json.dumps(BODY)}', '{RESULT}')",
        )
        for place, kind, data in EVENTS:
            await execute(url, f"INSERT INTO run_events VALUES ('{run_id}', {place}, '{kind}', '{data}')")
    return url


async def test_an_upgrade_keeps_every_run(serve: Serve, old: str) -> None:
    before = [await execute(old, kept) for kept in KEPT]
    assert f"upgraded from 0001 to {HEAD}" in await upgrade_database(old)
    after = [await execute(old, kept) for kept in KEPT]
    assert after == before
    client = await serve(fake_models(), database=old)
    listed = (await client.get("/v1/improve")).json()["data"]
    sent: Any = BODY["messages"]
    assert [run["excerpt"] for run in listed] == [sent[-1]["content"]] * 2
    run_id = f"imp_{1:032x}"
    assert (await client.get(f"/v1/improve/{run_id}")).json()["result"] == json.loads(RESULT)
    events = (await client.get(f"/v1/improve/{run_id}/events")).text
    assert all(f"id: {number}\nevent: {kind}\ndata: {data}\n\n" in events for number, kind, data in EVENTS)
    key, admin = await add_key(old), await add_key(old, "admin")
    secured = await serve(fake_models(), database=old)
    for run in (run_id, f"imp_{2:032x}"):
        assert_error(await ask(secured, "GET", f"/v1/improve/{run}", key), 404, "run_not_found")
        assert (await ask(secured, "GET", f"/v1/improve/{run}", admin)).status_code == 200
    assert (await ask(secured, "POST", "/v1/improve", key, json=BODY)).json()["stored"] is True


async def test_a_server_upgrades_an_sqlite_file_by_itself(serve: Serve, old: str) -> None:
    client = await serve(fake_models(), database=old)
    ready = await client.get("/health/ready")
    if old.startswith("sqlite"):
        assert ready.status_code == 200
        assert len((await client.get("/v1/improve")).json()["data"]) == 2
    else:
        assert "pit db upgrade" in ready.json()["reasons"][0], "PostgreSQL is for its operator to upgrade"
