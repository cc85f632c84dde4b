"""A database that is locked, down or full breaks no run; what is not stored is said, and leaves nothing."""

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store.database import Database, upgrade_database
from app.store.records import RunRecord
from app.store.writer import RunWriter
from app.telemetry import Telemetry
from tests.app.conftest import Serve, execute, new_postgres
from tests.app.fakes import fake_models
from tests.app.test_api import CANARY, assert_error, events_of
from tests.app.test_store import BODY, SLOW_BODY, slow, until_running
from tests.ports import free_port

ALL = "SELECT id FROM runs"
ROOT = Path(__file__).resolve().parents[2]


async def counted(client: httpx.AsyncClient, outcome: str) -> float:
    text = (await client.get("/metrics")).text
    found = re.search(rf'^pit_store_runs_total{{outcome="{outcome}"}} (.*)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_a_locked_database_breaks_no_run(serve: Serve, tmp_path: Path, caplog: Any) -> None:
    """The answers come, with stored: false; afterwards runs are stored again, and of the lost nothing is
    left."""
    file = tmp_path / "pit.db"
    client = await serve(fake_models(), database=f"sqlite:///{file}", store_timeout_s=0.4)
    body = BODY | {"messages": [{"role": "user", "content": CANARY}]}
    kept = (await client.post("/v1/improve", json=body)).json()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        answers = await asyncio.gather(*(client.post("/v1/improve", json=body) for _ in range(5)))
        streamed = events_of((await client.post("/v1/improve", json=body | {"stream": True})).text)
        assert time.monotonic() - started < 3
        other.execute("ROLLBACK")
    lost = [answer.json() for answer in answers] + [streamed[-1]["improvement"]]
    assert [run["stored"] for run in lost] == [False] * 6
    assert all(run["response"] for run in lost)
    assert "runs cannot be stored in sqlite:///" in caplog.text
    assert "SQLITE_BUSY" in caplog.text
    assert CANARY not in caplog.text
    assert await counted(client, "lost") == 6
    async with asyncio.timeout(5):
        while not (again := (await client.post("/v1/improve", json=body)).json())["stored"]:
            await asyncio.sleep(0.05)
        stored = {kept["id"], again["id"]}
        while (rows := {run_id for (run_id,) in await execute(f"sqlite:///{file}", ALL)}) != stored:
            assert rows > stored
            await asyncio.sleep(0.1)
    for run in lost:
        assert_error(await client.get(f"/v1/improve/{run['id']}"), 404, "run_not_found")
    assert "runs are stored again" in caplog.text


async def test_a_locked_database_does_not_hold_up_a_stream(serve: Serve, tmp_path: Path) -> None:
    """Events are not written before they are sent: only the last one, which says whether the run is stored,
    waits."""
    file = tmp_path / "pit.db"
    client = await serve(slow(delay_s=0.01), database=f"sqlite:///{file}", store_timeout_s=1.0)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        caller = asyncio.create_task(client.post("/v1/improve", json=SLOW_BODY | {"stream": True}))
        live = client.app.state.runs.live[await until_running(client)]
        slowest, last, seen = 0.0, time.monotonic(), live._shown
        async with asyncio.timeout(20):
            while len(live.run.iterations) < 3:
                await asyncio.sleep(0.001)
                if live._shown != seen:
                    slowest, last, seen = max(slowest, time.monotonic() - last), time.monotonic(), live._shown
        assert seen > 150
        # The wait for the lock is half a second: far from it on a busy machine too.
        assert slowest < 0.3
        assert events_of((await caller).text)[-1]["improvement"]["stored"] is False
        other.execute("ROLLBACK")


async def test_a_lock_that_goes_away_in_time_costs_no_run(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pit.db"
    client = await serve(fake_models(), database=f"sqlite:///{file}")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        caller = asyncio.create_task(client.post("/v1/improve", json=BODY))
        await asyncio.sleep(0.3)
        assert not caller.done()
        other.execute("ROLLBACK")
        assert (await caller).json()["stored"] is True


async def test_a_postgresql_that_is_down_breaks_no_run(
    serve: Serve, postgres_cluster: str, caplog: Any
) -> None:
    url = await new_postgres(postgres_cluster)
    await upgrade_database(url)
    name = url.split("/")[3].split("?")[0]
    client = await serve(fake_models(), database=url, store_timeout_s=0.5)
    kept = (await client.post("/v1/improve", json=BODY)).json()
    assert kept["stored"] is True
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await execute(
        postgres_cluster, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    for _ in range(3):
        started = time.monotonic()
        assert (await client.post("/v1/improve", json=BODY)).json()["stored"] is False
        assert time.monotonic() - started < 2
    assert_error(await client.get(f"/v1/improve/{kept['id']}"), 503, "store_unavailable")
    await execute(postgres_cluster, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    async with asyncio.timeout(5):
        while not (await client.post("/v1/improve", json=BODY)).json()["stored"]:
            await asyncio.sleep(0.05)
    assert (await client.get(f"/v1/improve/{kept['id']}")).json()["result"] == kept
    assert "runs cannot be stored" in caplog.text
    assert "runs are stored again" in caplog.text


@pytest.fixture
async def writer(database: str) -> Any:
    found = Database(database)
    await found.open()
    writer = RunWriter(found, Telemetry(), "test")
    writer.start()
    yield writer
    await writer.stop()
    await found.close()


def record(number: int, events: list[str]) -> RunRecord:
    return RunRecord(id=f"imp_{number:032x}", created=time.time(), request="{}", events=events)


async def finish(writer: RunWriter, found: RunRecord) -> bool:
    found.state, found.finished, found.result = "completed", time.time(), "{}"
    return await writer.finish(found)


async def test_a_run_that_cannot_be_stored_is_not_the_end_of_the_others(
    writer: RunWriter, database: str, caplog: Any
) -> None:
    """Half of a surrogate pair, which an upstream may send, is no text to any database."""
    good, bad = record(1, ["good"]), record(2, [f"{CANARY}\ud800"])
    for one in (bad, good):
        assert writer.add(one)
    assert list(await asyncio.gather(finish(writer, bad), finish(writer, good))) == [False, True]
    assert await execute(database, "SELECT id FROM runs") == [(good.id,)]
    assert "storing a run failed" in caplog.text
    assert CANARY not in caplog.text


async def test_a_large_run_is_written_in_several_transactions(
    writer: RunWriter, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them holds the event loop or the database's lock for long."""
    monkeypatch.setattr("app.store.writer.BATCH_EVENTS", 100)
    large, small = record(1, [str(n) for n in range(250)]), record(2, ["x"])
    for one in (large, small):
        writer.add(one)
    assert all(await asyncio.gather(finish(writer, large), finish(writer, small)))
    rows = await execute(
        database, f"SELECT number, data FROM run_events WHERE run_id = '{large.id}' ORDER BY number"
    )
    assert [number for number, _ in rows] == [100, 200, 250], "a row holds the events of a transaction"
    assert [n for _, data in rows for n in data.split("\n")] == [str(n) for n in range(250)]


async def test_more_runs_than_can_wait_are_not_stored(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.store.writer.MAX_PENDING", 1)
    one = record(1, [])
    assert (writer.add(one), writer.add(record(2, []))) == (True, False)
    assert await finish(writer, one)
    assert writer.add(record(3, []))
    client = await serve(fake_models(), database=f"sqlite:///{tmp_path}/pit.db")
    monkeypatch.setattr("app.store.writer.MAX_PENDING", 0)
    assert (await client.post("/v1/improve", json=BODY)).json()["stored"] is False
    assert await counted(client, "lost") == 1


SERVER = """
import sys
import uvicorn
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import factory_of, fake_models
app = create_app(Settings(database=sys.argv[1]), factory_of(fake_models()))
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


async def test_what_was_answered_survives_kill_9(database: str, serve: Serve) -> None:
    """Killed at the very moment of the answer, several times over one database."""
    runs, port = [], free_port()
    for _ in range(3):
        command = [sys.executable, "-c", SERVER, database, str(port)]
        server = subprocess.Popen(command, cwd=ROOT)
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=20) as client, asyncio.timeout(60):
                while True:
                    try:
                        if (await client.get("/health/ready")).status_code == 200:
                            break
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                for _ in range(5):
                    runs.append((await client.post("/v1/improve", json=BODY)).json())
                server.send_signal(signal.SIGKILL)
        finally:
            server.kill()
            server.wait()
    client = await serve(fake_models(), database=database)
    for run in runs:
        assert run["stored"] is True
        stored = (await client.get(f"/v1/improve/{run['id']}")).json()
        assert (stored["state"], stored["result"]) == ("completed", run)
        events = events_of((await client.get(f"/v1/improve/{run['id']}/events")).text)
        assert events[-1]["improvement"] == run
