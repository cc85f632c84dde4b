"""`pit batch`: every line has its result once, whatever happens to the command or to the server."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from app.batch.output import Output, OutputError
from app.cli import app
from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from tests.app.batching import IMPROVE, MESSAGES, jsonl, line
from tests.app.fakes import FakeEngine, factory_of, fake_models
from tests.app.test_api import longer_is_better
from tests.app.upstream import FakeUpstream, free_address, reply

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def server(models: Models, **settings: Any) -> AsyncGenerator[str, None]:
    application = create_app(Settings(**settings), factory_of(models))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        task = asyncio.create_task(running.serve(sockets=[listener]))
        await asyncio.wait_for(application.state.runtime.settled.wait(), 30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        await task


async def pit_batch(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and what was said."""
    given = ["batch", *map(str, arguments)]
    done = await asyncio.to_thread(lambda: CliRunner().invoke(app, given))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


def written(output: Path) -> dict[str, Any]:
    """The lines of the output by their custom_id; each is there once."""
    found = [json.loads(text) for text in output.read_text().splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


async def test_every_line_has_its_result(files: tuple[Path, Path]) -> None:
    """Of each endpoint, in OpenAI's shape; lines that are no requests, and refused ones, are errors of
    theirs."""
    source, output = files
    chat = {"model": "policy", "messages": MESSAGES}
    lines: list[Any] = [
        line("a"),
        {"custom_id": "b", "body": IMPROVE},
        line("c", CHAT, **chat),
        line("d", **(IMPROVE | {"max_iterations": 0})),
        line("e", stream=True),
        line("f", "/v1/nothing"),
        {"body": IMPROVE},
        {"custom_id": "h"},
    ]
    source.write_bytes(b"\n" + jsonl(lines) + b"{\n")
    async with server(longer_is_better()) as url:
        status, said = await pit_batch(source, output, "--url", url)
    assert status == 1
    assert "3 lines answered, 6 errors" in said
    found = written(output)
    assert set(found) == {*"abcdefh", "line-8", "line-10"}
    for name, kind in (("a", "improvement"), ("b", "improvement"), ("c", "chat.completion")):
        response = found[name]["response"]
        assert (response["status_code"], response["body"]["object"]) == (200, kind)
        assert response["request_id"].startswith("req_")
    assert found["a"]["response"]["body"]["stored"] is False
    assert found["d"]["response"]["body"]["error"]["param"] == "max_iterations"
    assert [found[n]["error"]["code"] for n in ("e", "f", "line-8", "h", "line-10")] == [
        "invalid_body", "invalid_url", "invalid_custom_id", "invalid_body", "invalid_json_line",
    ]  # fmt: skip


async def test_one_line_is_not_lines(files: tuple[Path, Path]) -> None:
    source, output = files
    source.write_bytes(jsonl([line("a"), {"custom_id": "b"}]))
    async with server(longer_is_better()) as url:
        said = (await pit_batch(source, output, "--url", url))[1]
    assert re.search(r"\b1 line answered, 1 error\b(?!s)", said), said


async def test_a_second_call_does_the_rest(files: tuple[Path, Path]) -> None:
    """And mends the last line, of which a kill has left a part."""
    source, output = files
    source.write_bytes(jsonl([line(f"n{n}") for n in range(6)]))
    models = longer_is_better()
    assert isinstance(models.improver, FakeEngine)
    async with server(models) as url:
        assert (await pit_batch(source, output, "--url", url))[0] == 0
        whole = output.read_bytes()
        once = models.improver.started
        ends = [place for place, byte in enumerate(whole) if byte == 10]
        for cut in (0, 10, ends[1] + 1, ends[1] + 2, ends[2], len(whole) - 1, len(whole)):
            output.write_bytes(whole[:cut])
            before = models.improver.started
            status, said = await pit_batch(source, output, "--url", url)
            assert (status, len(written(output))) == (0, 6)
            assert "6 lines answered, 0 errors" in said
            left = 6 - whole[:cut].count(b"\n")
            assert models.improver.started - before == left * once // 6


async def test_a_command_that_is_killed_can_be_resumed(files: tuple[Path, Path]) -> None:
    source, output = files
    source.write_bytes(jsonl([line(f"n{n}") for n in range(40)]))
    models = fake_models(improver=FakeEngine(script=lambda _: "word", delay_s=0.03))
    assert isinstance(models.improver, FakeEngine)
    async with server(models) as url:
        command = [sys.executable, "-m", "app.cli", "batch", str(source), str(output), "--url", url]
        process = subprocess.Popen(
            [*command, "--concurrency", "2"], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(60):
            while not output.exists() or output.read_bytes().count(b"\n") < 5:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = written(output) if output.read_bytes().endswith(b"\n") else None
        assert done is None or 5 <= len(done) < 40
        assert (await pit_batch(source, output, "--url", url))[0] == 0
        assert len(written(output)) == 40
        per_item = 2
        assert models.improver.started <= (40 + 2) * per_item


async def test_what_is_busy_or_broken_is_asked_again(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server says when; what it refuses is not asked again."""
    monkeypatch.setattr("app.batch.send.LONGEST_PAUSE_S", 0.02)
    source, output = files
    source.write_bytes(jsonl([line("a")]))
    busy, answer = b'{"error":{"param":null}}', b'{"object":"improvement"}'
    cases: list[tuple[list[tuple[int, bytes]], int, int]] = [
        ([(429, busy)] * 10, 200, 11),
        ([(503, busy)] * 10, 200, 11),
        ([(503, b'{"error":{"param":"scoring"}}')], 503, 1),
        ([(500, busy), (502, busy)], 200, 3),
        ([(500, busy)] * 9, 500, 3),
        ([(0, b"")] * 3, 200, 4),
        ([(400, busy)], 400, 1),
        ([(404, b"<html>")], 404, 1),
    ]
    for bad, expected, asked in cases:

        async def behave(
            _: FakeUpstream, writer: asyncio.StreamWriter, seen: int, bad: Any = bad
        ) -> bool:
            status, body = bad[seen - 1] if seen <= len(bad) else (200, answer)
            if status:
                await reply(writer, status, body, b"retry-after: 1")
            else:
                writer.close()
            return True

        output.unlink(missing_ok=True)
        async with FakeUpstream(behave=behave).running() as upstream:
            status, _ = await pit_batch(source, output, "--url", upstream.url, "--key", "secret")
            assert upstream.seen["/v1/improve"] == asked
            assert all(b"authorization: Bearer secret" in head for head in upstream.headers)
        found = written(output)["a"]["response"]
        assert (status, found["status_code"]) == (0 if expected == 200 else 1, expected)


async def test_several_servers_share_the_lines(files: tuple[Path, Path]) -> None:
    """One that is gone loses none of them."""
    source, output = files
    source.write_bytes(jsonl([line(f"n{n}") for n in range(12)]))
    models = [longer_is_better(), longer_is_better()]
    async with server(models[0]) as one, server(models[1]) as two:
        urls = ("--url", one, "--url", f"{two}/v1")
        assert (await pit_batch(source, output, *urls))[0] == 0
        for found in models:
            assert isinstance(found.improver, FakeEngine)
            assert found.improver.started > 0
        output.unlink()
        assert (await pit_batch(source, output, "--url", free_address(), "--url", one))[0] == 0
    assert len(written(output)) == 12


async def test_without_a_server_it_ends_and_can_be_resumed(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.batch.send.NEVER_REACHED_S", 0.1)
    monkeypatch.setattr("app.batch.send.LONGEST_PAUSE_S", 0.02)
    source, output = files
    source.write_bytes(jsonl([line("a"), line("b")]))
    status, said = await pit_batch(source, output, "--url", free_address())
    assert (status, output.read_bytes()) == (1, b"")
    assert "no server answers at" in said
    async with server(longer_is_better()) as url:
        assert (await pit_batch(source, output, "--url", url))[0] == 0


async def test_what_cannot_be_done_is_said_before_anything_is_sent(files: tuple[Path, Path]) -> None:
    source, output = files
    cases: list[tuple[bytes, list[str], str]] = [
        (jsonl([line("a"), line("b"), line("a")]), [], "line 3 has the custom_id of line 1"),
        (b"\n", [], "has no lines"),
        (jsonl([line("a")]), ["--endpoint", "/v1/models"], "choose among"),
    ]
    for content, options, words in cases:
        source.write_bytes(content)
        status, said = await pit_batch(source, output, *options)
        assert status == 2
        assert words in said
        assert not output.exists()
    source.write_bytes(jsonl([line("a")]))
    output.write_text("a letter\n")
    status, said = await pit_batch(source, output)
    assert (status, output.read_text()) == (2, "a letter\n")
    assert "holds something else (line 1)" in said
    for missing in ((source.parent / "none", output), (source, source.parent / "none" / "out")):
        assert (await pit_batch(*missing))[0] == 2
    output.unlink()
    with Output(output):
        status, said = await pit_batch(source, output)
        assert (status, "another pit batch" in said) == (2, True)
        with pytest.raises(OutputError), Output(output):
            pass
    assert os.stat(output).st_mode & 0o77 == 0, "results are private"
