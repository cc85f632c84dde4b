"""Every route with every kind of key, before anything else of the request is read (row 12 of the table of
faults)."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.access import ROUTES, document, need
from app.main import create_app
from app.security import SCOPES, Scope
from app.settings import Settings
from tests.app.conftest import Serve
from tests.app.fakes import factory_of, fake_models
from tests.app.test_api import BODY, assert_error
from tests.faults.figures import Figure, say
from tests.security.conftest import add_key, bearer, revoke_key, unknown_key

RUN = "imp_" + "0" * 32
MALFORMED = (
    "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "pit_{}", "Bearer pit_{} extra", "Token {}",
    "Bearer " + "x" * 5000, "Bearer {}\t{}", "Bearer, {}", "Bearer \xe9\xff", "Bearer ' OR 1=1 --",
)  # fmt: skip


def routes(app: FastAPI) -> Iterator[tuple[str, str, str]]:
    """Method, path and template of every route there is."""
    for route in app.routes:
        template: str = getattr(route, "path")  # noqa: B009  (of every kind of route, mounted files too)
        for method in sorted(getattr(route, "methods", None) or ["GET"]):
            yield method, re.sub(r"{[^}]*}", RUN, template), template


def unlisted(app: FastAPI) -> list[str]:
    return sorted({template for _, path, template in routes(app) if need(path) is None})


async def send(client: httpx.AsyncClient, method: str, path: str, headers: Any) -> httpx.Response:
    return await client.request(method, path, headers=headers, json={} if method == "POST" else None)


async def test_every_route_with_every_kind_of_key(serve: Serve, sqlite: str, quick: None) -> None:
    keys = {scope: await add_key(sqlite, scope) for scope in sorted(SCOPES)}
    others = {s: await add_key(sqlite, *sorted(SCOPES - {s, "admin"})) for s in sorted(SCOPES - {"admin"})}
    expired, revoked = await add_key(sqlite, "admin", expires_in=-1), await add_key(sqlite, "admin")
    await revoke_key(sqlite, revoked)
    good = keys["admin"]
    bad = [unknown_key(), good[:-1] + ("a" if good[-1] != "a" else "b"), good[:-1], good + "a", good.lower()]
    client = await serve(fake_models(), database=sqlite)
    sent, seen = 0, []
    for method, path, template in routes(client.app):
        wanted = need(path)
        seen.append(template)
        if wanted == "open":
            for headers in ({}, bearer(revoked), {"authorization": "nonsense"}):
                assert (await send(client, method, path, headers)).status_code not in (401, 403), path
                sent += 1
            continue
        none = await send(client, method, path, {})
        assert_refused(none, 401, "invalid_api_key", "Bearer", method)
        for text in MALFORMED:
            header = {"authorization": text.format(good, good).encode("latin-1")}
            assert_refused(await send(client, method, path, header), 401, "invalid_api_key", "Bearer", method)
        for key in (*bad, expired, revoked):
            refused = await send(client, method, path, bearer(key))
            assert_refused(refused, 401, "invalid_api_key", 'Bearer error="invalid_token"', method)
        right: list[Scope] = sorted(SCOPES) if wanted == "any key" else [wanted, "admin"]  # type: ignore[list-item]
        for scope in right:
            allowed = await send(client, method, path, bearer(keys[scope]))
            assert allowed.status_code in (200, 204, 400, 404), (path, scope, allowed.text)
            assert error_code(allowed) != "not_found", "the route itself has answered"
        sent += 1 + len(MALFORMED) + len(bad) + 2 + len(right)
        if wanted != "any key":
            refused = await send(client, method, path, bearer(others[wanted]))  # type: ignore[index]
            challenge = f'Bearer error="insufficient_scope", scope="{wanted}"'
            assert_refused(refused, 403, "insufficient_scope", challenge, method)
            sent += 1
    assert {"/v1/improve/{id}/events", "/v1/completions", "/metrics", "/v1/models/{model:path}"} <= set(seen)
    measured = f"{len(seen)} routes, {sent} requests, 0 answered wrongly"
    say(Figure(12, "routes with every kind of key", measured, "0 wrongly", True))


def assert_refused(response: httpx.Response, status: int, code: str, challenge: str, method: str) -> None:
    found = response.headers["www-authenticate"]
    assert (response.status_code, found.startswith(challenge)) == (status, True), (response.text, found)
    assert found.startswith("Bearer")
    if method != "HEAD":
        assert_error(response, status, code)


def error_code(response: httpx.Response) -> str | None:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


def test_every_route_is_on_the_list() -> None:
    """When this fails, say in app/access.py which scope the new route asks for."""
    app = create_app(Settings(database="none"), factory_of(fake_models()))
    assert unlisted(app) == []

    @app.get("/v1/new/{id}")
    async def new(id: str) -> str:
        return "shown"

    assert unlisted(app) == ["/v1/new/{id}"], "the check sees what nobody listed"


async def test_a_route_that_nobody_listed_is_refused_with_and_without_keys(serve: Serve, sqlite: str) -> None:
    key = await add_key(sqlite, "admin")
    for settings in ({}, {"database": sqlite}):
        client = await serve(fake_models(), **settings)
        client.app.get("/v1/new")(lambda: "shown")
        refused = await client.get("/v1/new", headers=bearer(key))
        assert_error(refused, 404, "not_found")
    assert_error(await client.get("/v1/new"), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/improve/a/events", "improve"), ("/v1/batches/b/cancel", "batch"),
        ("/v1/files/f/content", "batch"),
        ("/v1/feedback/export", "feedback"), ("/v1/chat/completions", "chat"), ("/v1/chat", None),
        ("/v1/improvement", None), ("/v1/improve2", None), ("/V1/improve", None), ("//v1/improve", None),
        ("/", "open"), ("//", None), ("/x", None), ("", None), ("*", None), ("/static/page.css", "open"),
        ("/health/../metrics", "open"), ("/metrics/", "metrics"), ("/docs/x", "open"), ("/redoc", None),
    ],
)  # fmt: skip
def test_what_a_path_asks_for(path: str, wanted: str | None) -> None:
    """A path with dots is what it says: the router looks for a route of that very name, and finds none."""
    assert need(path) == wanted


def test_a_path_of_many_slashes_costs_nothing() -> None:
    import timeit

    assert need("/" * 60_000) is None
    assert timeit.timeit(lambda: need("/" * 60_000), number=100) < 0.5


async def test_the_body_is_not_read_before_the_key(sqlite: str, serve: Serve) -> None:
    """Nobody without a key costs more than the headers."""
    await add_key(sqlite)
    client = await serve(fake_models(), database=sqlite)
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/improve", "raw_path": b"/v1/improve",
        "query_string": b"", "headers": [(b"content-length", b"9" * 12)],
        "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    await client.app(scope, receive, send)
    assert sent[0]["status"] == 401
    closed: list[Any] = []

    async def refuse(message: Any) -> None:
        closed.append(message)

    await client.app({"type": "websocket", "path": "/v1/improve", "headers": []}, receive, refuse)
    assert closed == [{"type": "websocket.close", "code": 1008}]


async def test_two_headers_are_none(serve: Serve, sqlite: str) -> None:
    """Which of two is meant is not for a proxy and this server to disagree about."""
    key = await add_key(sqlite)
    client = await serve(fake_models(), database=sqlite)
    twice = [("authorization", f"Bearer {key}")] * 2
    assert_error(await client.get("/v1/models", headers=twice), 401, "invalid_api_key")
    for header in (f"bearer {key}", f"BEARER   {key}"):
        assert (await client.get("/v1/models", headers={"authorization": header})).status_code == 200


async def test_a_server_without_keys_is_open_as_it_was(serve: Serve, sqlite: str) -> None:
    """An SDK sends some key always: it does not matter."""
    for settings in ({}, {"database": sqlite}, {"require_keys": "insecure-never"}):
        client = await serve(fake_models(), **settings)
        for headers in ({}, bearer("none"), {"authorization": "nonsense"}):
            assert (await client.post("/v1/improve", json=BODY, headers=headers)).status_code == 200
            assert (await client.get("/metrics", headers=headers)).status_code == 200


async def test_keys_required_and_none_there(serve: Serve, sqlite: str) -> None:
    client = await serve(fake_models(), database=sqlite, require_keys="always")
    assert_error(await client.post("/v1/improve", json=BODY), 401, "invalid_api_key")
    assert (await client.get("/health/ready")).status_code == 200
    key = await add_key(sqlite)
    assert (await client.post("/v1/improve", json=BODY, headers=bearer(key))).status_code == 200


async def test_insecure_never_asks_for_nothing_though_there_are_keys(serve: Serve, sqlite: str) -> None:
    await add_key(sqlite)
    client = await serve(fake_models(), database=sqlite, require_keys="insecure-never")
    assert (await client.post("/v1/improve", json=BODY)).status_code == 200


def test_openapi_says_who_may() -> None:
    app = create_app(Settings(database="none"), factory_of(fake_models()))
    paths = app.openapi()["paths"]
    assert app.openapi()["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert paths["/v1/improve"]["post"]["security"] == [{"key": ["improve"]}, {}]
    assert {"401", "403"} <= set(paths["/v1/models"]["get"]["responses"])
    assert "security" not in paths["/health"]["get"]
    assert document(app.openapi()) == app.openapi()


def test_no_listed_path_is_deeper_than_the_search() -> None:
    from app.access import DEPTH

    assert max(path.count("/") for path in ROUTES) == DEPTH


def test_new_keys_are_random_and_pass_their_own_check() -> None:
    from app.security import KEY, digest, new_key

    made = [new_key("test") for _ in range(1000)]
    assert len({key for key, _ in made}) == len({stored.id for _, stored in made}) == 1000
    for key, stored in made:
        match = KEY.fullmatch(key.encode())
        assert match and match[1].decode() == stored.id and digest(match[2]) == stored.digest
    letters = "".join(key.rpartition("_")[2] for key, _ in made)
    assert len(set(letters)) == 62 and max(map(letters.count, set(letters))) < 900, "43,000 of 62 letters"


async def test_openais_client_understands_the_refusals(serve: Serve, sqlite: str) -> None:
    """It raises what it raises for OpenAI's own keys, and does not try again."""
    import openai

    key = await add_key(sqlite, "feedback")
    client = await serve(fake_models(), database=sqlite)
    chat: dict[str, Any] = {"model": "pit", "messages": BODY["messages"]}
    for used, error in ((unknown_key(), openai.AuthenticationError), (key, openai.PermissionDeniedError)):
        sdk = openai.AsyncOpenAI(api_key=used, base_url="http://server/v1", http_client=client)
        with pytest.raises(error) as refused:
            await sdk.chat.completions.create(**chat)
        assert refused.value.code in ("invalid_api_key", "insufficient_scope")
    sdk = openai.AsyncOpenAI(api_key=await add_key(sqlite), base_url="http://server/v1", http_client=client)
    assert (await sdk.chat.completions.create(**chat)).choices[0].message.content
    assert [model.id async for model in await sdk.models.list()] == ["policy", "pit"]
    refusals = await client.get("/metrics", headers=bearer(await add_key(sqlite, "metrics")))
    assert 'pit_key_refusals_total{reason="unknown"} 1.0' in refusals.text
