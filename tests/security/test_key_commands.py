"""`pit keys` as a process of its own, beside a real server that runs; and where a server refuses to start."""

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from app.cli import app
from app.exposure import guard
from app.key_commands import public_id
from app.server import serve
from app.settings import Settings, SettingsError
from app.store.database import upgrade_database
from tests.app.conftest import execute, new_postgres
from tests.app.test_api import assert_error
from tests.app.upstream import FakeUpstream
from tests.ports import free_port
from tests.security.conftest import add_key, bearer, unknown_key

ROOT = Path(__file__).resolve().parents[2]
BODY = {"messages": [{"role": "user", "content": "What color ?"}], "reference": "Blue.", "max_iterations": 1}


async def pit(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Status, output and error output of a command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", *arguments, cwd=ROOT, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


def invoke(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """The same without a process."""
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@asynccontextmanager
async def serving(port: int, log: Path, *arguments: str) -> AsyncGenerator[str, None]:
    """`pit serve` before a fake upstream, until it is ready. Gives its address."""
    async with FakeUpstream().running() as upstream:
        roles = [f"--{role}-url={upstream.url}" for role in ("policy", "improver", "gap-reward")]
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "app.cli", "serve", "--port", str(port), *roles, *arguments,
                cwd=ROOT, stdout=file, stderr=file,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            async with httpx.AsyncClient(timeout=5) as client, asyncio.timeout(40):
                while process.returncode is None:
                    try:
                        if (await client.get(f"{url}/health/ready")).status_code == 200:
                            break
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
            assert process.returncode is None, log.read_text()
            yield url
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 30)


async def test_keys_are_made_and_revoked_while_a_server_runs(tmp_path: Path) -> None:
    """The way of a user: an open server, a first key, the commands with it, its end. The log has no key."""
    log, place = tmp_path / "log", ("--database", f"sqlite:///{tmp_path}/pit.db")
    turn = ("--improve-turn", "Better, please.", "--log-level", "debug")
    async with serving(free_port(), log, *place, *turn) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.post("/v1/improve", json=BODY)).status_code == 200
        status, out, said = await pit("keys", "create", "laptop", "--expires", "30d", *place)
        key = out.strip()
        assert (status, key in said, "It is their first" in said) == (0, False, True)
        assert re.fullmatch(r"pit_[0-9a-z]{12}_[0-9A-Za-z]{43}", key)
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200, "at once"
        async with asyncio.timeout(5):
            while (refused := await client.post("/v1/improve", json=BODY)).status_code != 401:
                await asyncio.sleep(0.05)
        assert_error(refused, 401, "invalid_api_key")
        improve = ("improve", "What color ?", "--reference", "Blue.", "--url", url, "--json")
        status, out, _ = await asyncio.to_thread(invoke, *improve, PIT_API_KEY=key)
        keyless, _, why = await asyncio.to_thread(invoke, *improve)
        _, listed, _ = await asyncio.to_thread(invoke, "keys", "list", "--json", *place)
        assert (status, keyless) == (0, 1)
        assert "PIT_API_KEY" in why
        (row,) = json.loads(listed)
        assert (row["name"], row["state"], row["id"]) == ("laptop", "active", public_id(key))
        assert row["expires"] - row["created"] == 30 * 86400
        run = json.loads(out)["id"]
        assert run in (await asyncio.to_thread(invoke, "runs", "--url", url, "--key", key))[1]
        again = await asyncio.to_thread(invoke, "replay", run, "--url", url, "--key", key, "--json")
        assert json.loads(again[1])["run"] == run
        status, said, _ = await pit("keys", "revoke", row["id"], *place)
        assert (status, row["id"] in said) == (0, True)
        async with asyncio.timeout(5):
            while (await client.get("/v1/models", headers=bearer(key))).status_code != 401:
                await asyncio.sleep(0.05)
    secret = key.rpartition("_")[2]
    assert secret not in log.read_text()
    assert public_id(key) in log.read_text(), "whose requests they are is in the log"
    files = b"".join(file.read_bytes() for file in tmp_path.glob("pit.db*"))
    assert row["id"].encode() in files and secret.encode() not in files
    assert stat.S_IMODE((tmp_path / "pit.db").stat().st_mode) == 0o600


def test_a_key_is_as_it_was_asked_for(tmp_path: Path) -> None:
    place = ("--database", f"sqlite:///{tmp_path}/new/pit.db")
    limits = ("--requests-per-minute", "60", "--concurrency", "2")
    wanted = ("--scope", "chat", "--scope", "improve,chat", *limits)
    made = json.loads(invoke("keys", "create", "ci – ä", *wanted, "--json", *place)[1])
    key = made.pop("key")
    assert made["scopes"] == ["chat", "improve"]
    assert made["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "concurrency": 2}
    assert (made["expires"], made["owner"], made["name"]) == (None, made["id"], "ci – ä")
    follower = json.loads(invoke("keys", "create", "next", "--follows", made["id"], "--json", *place)[1])
    assert (follower["owner"], follower["id"] != made["id"]) == (made["id"], True)
    assert follower["scopes"] == ["improve", "chat", "batch", "feedback"]
    listed = invoke("keys", "list", "--json", *place)[1]
    assert json.loads(listed)[0] == made
    shown = invoke("keys", "list", *place)[1]
    assert "ci – ä - chat improve requests_per_minute=60 concurrency=2" in shown
    assert f"next - improve chat batch feedback follows={made['id']}" in shown
    for text in (listed, shown):
        assert key.rpartition("_")[2] not in text and "digest" not in text
    assert "is revoked" in invoke("keys", "revoke", key, *place)[1], "the whole key will do"
    assert "revoked before" in invoke("keys", "revoke", made["id"], *place)[1]
    assert f"{made['id']}  revoked" in invoke("keys", "list", *place)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "a", "--scope", "everything"), "--scope everything: choose among admin, batch"),
        (("create", "a", "--expires", "tomorrow"), "write a number and m, h, d or w"),
        (("create", "a", "--expires", "0d"), "write a number"), (("create", ""), "1 to 64"),
        (("create", "a\nb"), "1 to 64"), (("create", "a", "--follows", "nobody"), "no key nobody"),
        (("revoke", "0" * 12), "there is no key 000000000000"),
        (("list", "--database", "none"), "PIT_API_KEYS"), (("list", "--database", "nonsense"), "sqlite:///FILE"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    place = () if "--database" in arguments else ("--database", f"sqlite:///{tmp_path}/pit.db")
    status, _, error = invoke("keys", *arguments, *place)
    assert (status > 0, said in error) == (True, True), error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_an_unknown_key_is_named_by_its_id_alone(tmp_path: Path) -> None:
    key = unknown_key()
    _, _, error = invoke("keys", "revoke", key, "--database", f"sqlite:///{tmp_path}/pit.db")
    assert public_id(key) in error and key not in error


async def test_keys_in_postgresql(postgres_cluster: str) -> None:
    """A schema that is not there yet is not made by this command."""
    url = await new_postgres(postgres_cluster)
    place = ("--database", url)
    status, _, error = await asyncio.to_thread(invoke, "keys", "create", "a", *place)
    assert (status, "pit db upgrade" in error) == (2, True)
    await upgrade_database(url)
    made = json.loads((await asyncio.to_thread(invoke, "keys", "create", "a", "--json", *place))[1])
    assert (await asyncio.to_thread(invoke, "keys", "revoke", made["id"], *place))[0] == 0
    (row,) = json.loads((await asyncio.to_thread(invoke, "keys", "list", "--json", *place))[1])
    assert row["state"] == "revoked"
    assert await execute(url, "SELECT length(digest) FROM api_keys") == [(32,)]


ANYWHERE = ("0.0.0.0", "::", "10.0.0.7", "2001:db8::1", "fe80::1%eth0", "192.168.1.4")


async def test_an_address_that_others_reach_needs_a_key(sqlite: str, postgres_cluster: str) -> None:
    """No key: refused. One in the database or the settings: asked for, also where `auto` would not."""

    async def guarded(address: str, **settings: object) -> Settings:
        return await asyncio.to_thread(guard, Settings(**settings), address)  # type: ignore[arg-type]

    empty = await new_postgres(postgres_cluster)
    places = (("none", "PIT_API_KEYS"), (sqlite, "pit keys create"), (empty, "pit keys create"))
    for address in ANYWHERE:
        for database, make in places:
            with pytest.raises(SettingsError, match=r"reached from other machines.*no API keys") as refused:
                await guarded(address, database=database)
            assert make in str(refused.value) and "--require-keys insecure-never" in str(refused.value)
    assert not Path(sqlite.removeprefix("sqlite:///")).exists(), "a refusal makes no database"
    await add_key(sqlite)
    given = {"database": "none", "api_keys": f"ci {unknown_key()}"}
    down = {"database": "postgresql://pit@127.0.0.1:9/pit", "store_timeout_s": 0.5}
    for settings in ({"database": sqlite}, given, down, {"database": sqlite, "require_keys": "always"}):
        assert (await guarded("0.0.0.0", **settings)).require_keys == "always", settings
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        assert (await guarded(address, database="none")).require_keys == "auto"
        with pytest.raises(SettingsError, match="API keys are required, and there are no"):
            await guarded(address, database="none", require_keys="always")
    assert (await guarded("127.0.0.1", database=sqlite, require_keys="always")).require_keys == "always"


async def test_the_way_out_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(require_keys="insecure-never", database="none")
    assert await asyncio.to_thread(guard, settings, "0.0.0.0") == settings
    assert "no API keys are asked for" in caplog.text
    both = settings.model_copy(update={"api_keys": Settings(api_keys=unknown_key()).api_keys})
    with pytest.raises(SettingsError, match="exclude each other"):
        guard(both, "127.0.0.1")


async def test_pit_serve_refuses_in_one_line(tmp_path: Path) -> None:
    """Beyond loopback without keys, before anything slow."""
    options = ("--policy-url", "http://127.0.0.1:9", "--port", "0", "--host", "0.0.0.0")
    status, _, error = await pit("serve", *options, "--database", f"sqlite:///{tmp_path}/pit.db")
    assert (status, len(error.strip().splitlines())) == (2, 1), error
    assert "reached from other machines" in error


def test_a_server_with_a_weak_key_does_not_start() -> None:
    settings = Settings(policy_url=("http://127.0.0.1:9",), port=0, database="none", api_keys="ops changeme")
    with pytest.raises(SettingsError, match="is refused: it is too short"):
        serve(settings, Console())
