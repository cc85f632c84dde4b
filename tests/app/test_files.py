"""Files: kept as they were sent, bounded in size and in memory, gone when they are deleted."""

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.app.conftest import Serve, execute
from tests.app.fakes import fake_models
from tests.app.identified import identify
from tests.app.test_api import assert_error

FORM = "multipart/form-data; boundary=xyz"


def form(content: bytes, **fields: str) -> Any:
    """The parts of an upload."""
    given = {"purpose": "batch"} | fields
    return {name: (None, value) for name, value in given.items()} | {"file": ("in.jsonl", content)}


def raw(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    """A form by hand."""
    head = "--xyz\r\nContent-Disposition: form-data; {}\r\n\r\n"
    return b"".join(head.format(how).encode() + data + b"\r\n" for how, data in parts) + end


@pytest.mark.parametrize("size", [0, 1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 1_500_000])
async def test_a_file_comes_back_as_it_was_sent(serve: Serve, database: str, size: int) -> None:
    client = await serve(fake_models(), database=database)
    content = os.urandom(size)
    answer = await client.post("/v1/files", files=form(content))
    file = answer.json()
    assert (answer.status_code, file["object"], file["bytes"]) == (200, "file", size)
    assert (file["filename"], file["purpose"], file["status"]) == ("in.jsonl", "batch", "processed")
    assert file["expires_at"] - file["created_at"] == pytest.approx(30 * 86400, abs=2)
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    back = await client.get(f"/v1/files/{file['id']}/content")
    assert back.content == content
    assert back.headers["content-length"] == str(size)
    gone = await client.delete(f"/v1/files/{file['id']}")
    assert gone.json() == {"id": file["id"], "object": "file", "deleted": True}
    for path in ("", "/content"):
        assert_error(await client.get(f"/v1/files/{file['id']}{path}"), 404, "file_not_found", "file_id")
    assert_error(await client.delete(f"/v1/files/{file['id']}"), 404, "file_not_found", "file_id")
    assert await execute(database, "SELECT count(*) FROM file_chunks") == [(0,)]


async def test_a_form_may_come_in_any_pieces_and_any_order(serve: Serve, tmp_path: Any) -> None:
    client = await serve(fake_models(), database=f"sqlite:///{tmp_path}/pit.db")
    content = b"--xyz\r\n--xy\r\n--xzy \r\r\n\r\n{}" * 20
    body = raw(
        ('name="file"; filename="\u00e4.jsonl"; size=1', content),
        ('name="expires_after[anchor]"', b"created_at"),
        ('name="expires_after[seconds]"', b"3600"),
        ('name="purpose"', b"batch"),
    )
    for step in (1, 7, 64, len(body)):

        async def pieces(step: int = step) -> AsyncGenerator[bytes, None]:
            for start in range(0, len(body), step):
                yield body[start : start + step]

        answer = await client.post("/v1/files", content=pieces(), headers={"content-type": FORM})
        file = answer.json()
        assert answer.status_code == 200, file
        assert file["filename"] == "\u00e4.jsonl"
        assert file["expires_at"] - file["created_at"] == pytest.approx(3600, abs=1)
        assert (await client.get(f"/v1/files/{file['id']}/content")).content == content


@pytest.mark.parametrize(
    ("kind", "body", "code", "param"),
    [
        ("application/json", b"{}", "invalid_form", None),
        ("multipart/form-data", b"", "invalid_form", None),
        ("multipart/form-data; boundary=", b"", "invalid_form", None),
        ("multipart/form-data; boundary=" + "x" * 71, b"", "invalid_form", None),
        (FORM, b"", "invalid_form", None),
        (FORM, b"nonsense", "invalid_form", None),
        (FORM, raw(('name="purpose"', b"batch"), end=b""), "invalid_form", None),
        (FORM, raw(("filename=a", b"batch")), "invalid_form", None),
        (FORM, raw(('name="' + "a" * 5000 + '"', b"batch")), "invalid_form", None),
        (FORM, raw(('name="purpose"', b"batch")), "missing_field", "file"),
        (FORM, raw(('name="file"; filename="a"', b"{}")), "missing_field", "purpose"),
        (FORM, raw(('name="purpose"', b"assistants"), ('name="file"', b"")), "invalid_value", "purpose"),
        (FORM, raw(('name="purpose"', b"batch" * 300), ('name="file"', b"")), "invalid_value", "purpose"),
        (FORM, raw(('name="other"', b"batch"), ('name="file"', b"")), "unknown_field", "other"),
        (FORM, raw(('name="file"', b"a"), ('name="file"', b"b")), "unknown_field", None),
        *(
            (FORM, raw(('name="purpose"', b"batch"), ('name="file"', b""), *extra), None, "expires_after")
            for extra in (
                [('name="expires_after[seconds]"', b"3600")],
                [('name="expires_after[anchor]"', b"created_at")],
                [
                    ('name="expires_after[anchor]"', b"created_at"),
                    ('name="expires_after[seconds]"', b"\xb2"),
                ],
            )
        ),
    ],
)
async def test_a_bad_form_is_a_400_and_leaves_nothing(
    serve: Serve, tmp_path: Any, kind: str, body: bytes, code: str | None, param: str | None
) -> None:
    database = f"sqlite:///{tmp_path}/pit.db"
    client = await serve(fake_models(), database=database)
    refused = await client.post("/v1/files", content=body, headers={"content-type": kind})
    assert_error(refused, 400, code, param)
    assert await execute(database, "SELECT count(*) FROM files") == [(0,)]


async def test_a_file_over_the_limit_is_refused_and_leaves_nothing(serve: Serve, database: str) -> None:
    """A body over the ordinary limit is taken here; over the limit of files it is not, said or unsaid."""
    client = await serve(fake_models(), database=database, max_body_bytes=1000, max_file_bytes=1_000_000)
    assert (await client.post("/v1/files", files=form(b"x" * 1_000_000))).status_code == 200
    refused = await client.post("/v1/files", files=form(b"x" * 1_000_001))
    assert_error(refused, 413, "request_too_large")
    refused = await client.post("/v1/files", files=form(b"x" * 2_000_000))
    assert_error(refused, 413, "request_too_large")
    for begin in (raw(('name="file"; filename="a"', b""), end=b"")[:-2], raw()):
        sent = 0

        async def endless(begin: bytes = begin) -> AsyncGenerator[bytes, None]:
            """In the file, and behind the form's end, where nothing is kept."""
            nonlocal sent
            yield begin
            while sent < 10_000_000:
                sent += 10_000
                yield b"x" * 10_000

        refused = await client.post("/v1/files", content=endless(), headers={"content-type": FORM})
        assert_error(refused, 413, "request_too_large")
        assert sent < 1_200_000
    assert_error(await client.post("/v1/improve", content=b"x" * 1001), 413, "request_too_large")
    assert await execute(database, "SELECT count(*) FROM files") == [(1,)]


async def test_the_files_of_a_key_have_a_limit_together(serve: Serve, database: str) -> None:
    """Outputs count too, what is deleted does not, and nobody else's does. Of two at once one is taken,
    however long a commit takes; and no more is read of a file than there is room for."""
    client = await serve(fake_models(), database=database, max_files_bytes_per_key=1_000_000)
    identify(client.app)
    mine, other = {"x-test-key": "a"}, {"x-test-key": "b"}

    async def upload(size: int, headers: Any = mine) -> httpx.Response:
        found: httpx.Response = await client.post("/v1/files", files=form(b"x" * size), headers=headers)
        return found

    first = await upload(600_000)
    assert first.status_code == 200
    assert_error(await upload(400_001), 413, "files_full", "file")
    assert (await upload(1_000_000, other)).status_code == 200
    assert_error(await upload(1, other), 413, "files_full", "file")
    assert (await upload(400_000)).status_code == 200
    assert_error(await upload(1), 413, "files_full", "file")
    await client.delete(f"/v1/files/{first.json()['id']}", headers=mine)
    if database.startswith("postgresql"):
        pause = "LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'"
        await execute(database, f"CREATE FUNCTION pause() RETURNS trigger {pause}")
        at_commit = "AFTER UPDATE ON files DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        await execute(database, f"CREATE CONSTRAINT TRIGGER late {at_commit} EXECUTE FUNCTION pause()")
    statuses = [answer.status_code for answer in await asyncio.gather(upload(600_000), upload(600_000))]
    assert sorted(statuses) == [200, 413]
    kept = await execute(database, "SELECT owner, sum(bytes) FROM files GROUP BY owner ORDER BY owner")
    assert [(owner, int(size)) for owner, size in kept] == [("a", 1_000_000), ("b", 1_000_000)]
    assert await execute(database, "SELECT count(*) FROM files WHERE NOT complete") == [(0,)]
    await execute(database, "UPDATE files SET purpose = 'batch_output' WHERE owner = 'a'")
    sent = 0

    async def long() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        yield raw(('name="file"; filename="a"', b""), end=b"")[:-2]
        for _ in range(1000):
            sent += 10_000
            yield b"x" * 10_000

    refused = await client.post("/v1/files", content=long(), headers=mine | {"content-type": FORM})
    assert_error(refused, 413, "files_full", "file")
    assert sent < 100_000


async def test_files_may_be_without_a_limit(serve: Serve, tmp_path: Any) -> None:
    database = f"sqlite:///{tmp_path}/pit.db"
    client = await serve(fake_models(), database=database, max_files_bytes_per_key=0)
    assert (await client.post("/v1/files", files=form(b"{}"))).status_code == 200


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)

    head = raw(('name="file"; filename="a"', b"x" * 600_000), end=b"")[:-2]
    said: list[Any] = [
        {"type": "http.request", "body": head, "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return said.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", FORM.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": headers}
    await client.app(scope, receive, send)
    assert (said, sent) == ([], []), "nobody is there to be answered"
    assert await execute(database, "SELECT count(*) FROM files") == [(0,)]
    assert 'pit_disconnects_total{route="/v1/files"} 1.0' in (await client.get("/metrics")).text


async def test_a_body_that_stops_is_given_up(serve: Serve, tmp_path: Any) -> None:
    client = await serve(fake_models(), database=f"sqlite:///{tmp_path}/pit.db", body_timeout_s=0.1)

    async def stuck() -> AsyncGenerator[bytes, None]:
        yield raw(('name="file"; filename="a"', b"x"), end=b"")
        await asyncio.sleep(10)

    refused = await client.post("/v1/files", content=stuck(), headers={"content-type": FORM})
    assert_error(refused, 408, "request_timeout")


async def test_files_have_pages_both_ways(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    made = [(await client.post("/v1/files", files=form(b"{}"))).json()["id"] for _ in range(5)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        seen: list[str] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            query = {"limit": "2", "order": order} | ({"after": page["last_id"]} if seen else {})
            page = (await client.get("/v1/files", params=query)).json()
            seen += [file["id"] for file in page["data"]]
        assert seen == expected
    assert (await client.get("/v1/files", params={"purpose": "batch_output"})).json()["data"] == []
    assert_error(await client.get("/v1/files", params={"after": "file-0"}), 400, None, "after")
    assert_error(await client.get("/v1/files", params={"after": "\u0000"}), 400, None, "after")
    assert_error(await client.get("/v1/files", params={"limit": 0}), 400, None, "limit")


async def test_an_upload_that_was_killed_is_swept_away(serve: Serve, database: str) -> None:
    client = await serve(fake_models(), database=database)
    made = [(await client.post("/v1/files", files=form(b"{}"))).json()["id"] for _ in range(2)]
    await execute(database, f"UPDATE files SET complete = false WHERE id = '{made[0]}'")
    assert_error(await client.get(f"/v1/files/{made[0]}"), 404, "file_not_found", "file_id")
    files = client.app.state.batches.files
    assert await files.prune() == 0, "it may still be written"
    await execute(database, f"UPDATE files SET created = created - 8000 WHERE id = '{made[0]}'")
    assert await files.prune() == 1
    assert await execute(database, "SELECT id FROM files") == [(made[1],)]
