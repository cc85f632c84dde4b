"""What is not yours is never shown: runs of another key are as if they did not exist."""

import asyncio
from dataclasses import replace
from typing import Any

from app.security import Identity, KeyLimits, caller, new_key
from tests.app.conftest import Serve
from tests.app.fakes import fake_models
from tests.app.test_api import assert_error
from tests.app.test_store import BODY, SLOW_BODY, slow, until_running
from tests.faults.figures import Figure, say
from tests.security.conftest import add_key, ask, bearer, opened, unknown_key


async def probe(client: Any, run_id: str, key: str) -> list[Any]:
    """Everything that could show or change a run."""
    path = f"/v1/improve/{run_id}"
    last = {"headers": bearer(key) | {"last-event-id": "1"}}
    return [
        await ask(client, "GET", path, key),
        await ask(client, "GET", f"{path}/events", key),
        await ask(client, "GET", f"{path}/events?after=3", key),
        await client.get(f"{path}/events", **last),
        await ask(client, "POST", f"{path}/cancel", key),
    ]


async def listed(client: Any, key: str, query: str = "") -> list[str]:
    answer = await ask(client, "GET", f"/v1/improve{query}", key)
    assert answer.status_code == 200, answer.text
    return [run["id"] for run in answer.json()["data"]]


async def test_a_stored_run_is_its_owners_and_an_admins(serve: Serve, database: str) -> None:
    mine, other, admin = await add_key(database), await add_key(database), await add_key(database, "admin")
    client = await serve(fake_models(), database=database)
    runs = [(await ask(client, "POST", "/v1/improve", mine, json=BODY)).json() for _ in range(3)]
    theirs = (await ask(client, "POST", "/v1/improve", other, json=BODY)).json()
    assert all(run["stored"] for run in (*runs, theirs))
    tried = await probe(client, runs[0]["id"], other)
    for answer in tried:
        assert_error(answer, 404, "run_not_found")
        unknown = (await ask(client, "GET", "/v1/improve/imp_" + "0" * 32, other)).json()
        assert answer.json() == unknown, "the same as of a run that does not exist"
    ids = [run["id"] for run in reversed(runs)]
    assert await listed(client, mine) == ids
    assert await listed(client, other) == [theirs["id"]]
    assert await listed(client, await add_key(database)) == []
    assert await listed(client, admin) == [theirs["id"], *ids]
    assert await listed(client, mine, f"?limit=1&after={ids[0]}") == [ids[1]], "a page goes on with one's own"
    stranger = await ask(client, "GET", f"/v1/improve?after={ids[0]}", other)
    assert_error(stranger, 400, None, "after")
    for key in (mine, admin):
        answers = await probe(client, runs[0]["id"], key)
        assert [answer.status_code for answer in answers] == [200] * 5
        assert answers[0].json()["result"] == runs[0]
    what = f"another tenant's runs, stored ({database.partition(':')[0]})"
    say(Figure(12, what, f"{len(tried)} of {len(tried)} are 404, lists empty", "all 404, lists empty", True))


async def test_a_running_run_is_its_owners_on_every_server(serve: Serve, database: str) -> None:
    """In memory, and as the other servers of the database see it: a stranger neither follows nor stops it."""
    mine, other, admin = await add_key(database), await add_key(database), await add_key(database, "admin")
    client = await serve(slow(), database=database)
    second = await serve(fake_models(), database=database)
    body = SLOW_BODY | {"max_iterations": 2}
    sent = asyncio.create_task(ask(client, "POST", "/v1/improve", mine, json=body))
    run_id = await until_running(client)
    async with asyncio.timeout(5):
        while not await listed(second, mine):
            await asyncio.sleep(0.05)
    tried = []
    for server in (client, second):
        found = await probe(server, run_id, other)
        for answer in found:
            assert_error(answer, 404, "run_not_found")
        tried += found
        assert (await ask(server, "GET", f"/v1/improve/{run_id}", mine)).json()["state"] == "running"
        assert await listed(server, other) == []
        assert await listed(server, admin) == [run_id]
    assert (await sent).json()["stop_reason"] != "cancelled", "the strangers' cancellations did nothing"
    what = f"another tenant's run while it runs, two servers ({database.partition(':')[0]})"
    say(Figure(12, what, f"{len(tried)} of {len(tried)} are 404", "all 404, the run goes on", True))


async def test_an_admin_may_cancel(serve: Serve, sqlite: str) -> None:
    mine, admin = await add_key(sqlite), await add_key(sqlite, "admin")
    client = await serve(slow(), database=sqlite)
    sent = asyncio.create_task(ask(client, "POST", "/v1/improve", mine, json=SLOW_BODY))
    run_id = await until_running(client)
    assert (await ask(client, "POST", f"/v1/improve/{run_id}/cancel", admin)).json()["state"] == "cancelled"
    assert (await sent).json()["stop_reason"] == "cancelled"


async def test_runs_of_the_time_before_keys_are_an_admins(serve: Serve, sqlite: str) -> None:
    open_server = await serve(fake_models(), database=sqlite)
    run = (await open_server.post("/v1/improve", json=BODY)).json()
    key, admin = await add_key(sqlite), await add_key(sqlite, "admin")
    client = await serve(fake_models(), database=sqlite)
    assert_error(await ask(client, "GET", f"/v1/improve/{run['id']}", key), 404, "run_not_found")
    assert (await listed(client, key), await listed(client, admin)) == ([], [run["id"]])
    anybody = await serve(fake_models(), database=sqlite, require_keys="insecure-never")
    await ask(client, "POST", "/v1/improve", key, json=BODY)
    assert len((await anybody.get("/v1/improve")).json()["data"]) == 2


async def test_every_route_knows_who_asks(serve: Serve, sqlite: str) -> None:
    """`caller()` has the key's owner, scopes and limits; on an open route nobody, who owns nothing."""
    limits = KeyLimits(60, 1000, 2)
    key, stored = new_key("test", ("improve", "feedback"), limits)
    async with opened(sqlite) as table:
        await table.add(replace(stored, owner="earlier"))
    client = await serve(fake_models(), database=sqlite)
    seen: list[Identity] = []
    for path in ("/v1/score/who", "/static/who"):
        client.app.get(path)(lambda: seen.append(caller()))
        assert (await ask(client, "GET", path, key)).status_code == 200
    assert seen[0] == Identity("earlier", frozenset(("improve", "feedback")), limits)
    assert (seen[1].sees(None), seen[1].sees("earlier"), seen[1].may("improve")) == (False, False, False)


async def test_keys_of_one_name_in_the_settings_are_one_owner(serve: Serve, sqlite: str) -> None:
    """So that a key can be exchanged."""
    old, new, other = (unknown_key() for _ in range(3))
    client = await serve(fake_models(), database=sqlite, api_keys=f"ci {old}; ci {new}; else {other}")
    run = (await ask(client, "POST", "/v1/improve", old, json=BODY)).json()
    assert await listed(client, new) == [run["id"]]
    assert await listed(client, other) == []
