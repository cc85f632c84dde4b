"""`pit batch --ray` on a Ray that each call starts on this machine and ends again."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow
import pyarrow.parquet
import pytest

from app.batch.lines import result_line
from app.batch.on_ray import Send
from app.batch.ray_data import LinesDatasource
from app.batch.send import Target, Unreachable
from tests.app.batching import IMPROVE, jsonl, line
from tests.app.test_api import longer_is_better
from tests.app.test_batch_command import server
from tests.app.upstream import free_address

pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
MARK = "PIT_TEST_OF_RAY"


def processes() -> Iterator[str]:
    """What runs with the mark of these tests in its environment: Ray's servers and workers inherit it."""
    for process in psutil.process_iter():
        try:
            if MARK in process.environ() and process.pid != os.getpid():
                yield " ".join(process.cmdline())
        except psutil.Error:
            continue


async def pit_batch_on_ray(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and what was said. Nothing of Ray runs any more afterwards."""
    command = [sys.executable, "-m", "app.cli", "batch", "--ray", "--actors", "1", *map(str, arguments)]
    environment = os.environ | {MARK: "1", "RAY_USAGE_STATS_ENABLED": "0"}

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

    done = await asyncio.to_thread(run)
    async with asyncio.timeout(20):  # they are told to end, and end a moment later
        while list(processes()):
            await asyncio.sleep(0.1)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def written(folder: Path) -> dict[str, Any]:
    found = [json.loads(text) for path in folder.glob("*.jsonl") for text in path.read_text().splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


@pytest.mark.slow
async def test_a_folder_is_sent_and_what_is_there_is_left_out(tmp_path: Path) -> None:
    """An earlier call, which was killed, has left a file with a part of a line."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "one.jsonl").write_bytes(jsonl([line(f"n{n}") for n in range(300)]))
    (source / "two.jsonl").write_bytes(jsonl([line("last"), {"custom_id": "bad"}]))
    output.mkdir()
    before = "".join(result_line(f"n{n}", "before", 200, "{}") + "\n" for n in range(40))
    (output / "before.jsonl").write_text(before + '{"custom_id": "n40", "resp')
    models = longer_is_better()
    async with server(models) as url:
        status, said = await pit_batch_on_ray(source, output, "--url", url)
    assert (status, "301 lines answered, 1 error" in said) == (1, True), said
    found = written(output)
    assert found.keys() == {*(f"n{n}" for n in range(300)), "last", "bad"}
    assert found["bad"]["error"]["code"] == "invalid_body"
    assert [n for n in range(300) if found[f"n{n}"]["response"]["request_id"] == "before"] == [*range(40)]


async def test_what_an_actor_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of JSON and rows of Parquet, whose bodies are JSON or columns; not what is done."""
    rows: list[dict[str, Any]] = [
        {"line": json.dumps(line("a")), "number": 1},
        {"line": "{", "number": 2},
        {"line": json.dumps(line("done")), "number": 3},
    ]
    async with server(longer_is_better()) as url:
        send = Send(Target((url,)), frozenset({"done"}))

        async def sent(table: Any) -> dict[str, Any]:
            made = await asyncio.to_thread(send, table)
            lines = [json.loads(text) for text in made.column("line").to_pylist()]
            return {one["custom_id"]: one for one in lines}

        found = await sent(pyarrow.Table.from_pylist(rows))
        assert found.keys() == {"a", "line-2"}
        assert found["a"]["response"]["status_code"] == 200
        bodies = [IMPROVE, IMPROVE | {"seed": 0, "metadata": {"a": "b"}}]
        as_text = pyarrow.table({"custom_id": ["a", "b"], "body": [json.dumps(body) for body in bodies]})
        as_columns = pyarrow.Table.from_pylist(
            [{"custom_id": name, "body": body} for name, body in zip("ab", bodies, strict=True)]
        )
        for table in (as_text, as_columns):
            file = tmp_path / "table.parquet"
            pyarrow.parquet.write_table(table, file)
            found = await sent(pyarrow.parquet.read_table(file))
            assert [found[n]["response"]["body"].get("metadata") for n in "ab"] == [None, {"a": "b"}]
    monkeypatch.setattr("app.batch.send.NEVER_REACHED_S", 0)
    with pytest.raises(Unreachable):
        await asyncio.to_thread(Send(Target((free_address(),)), frozenset()), as_text)


def test_lines_are_cut_at_line_feeds_only() -> None:
    """In blocks of so many, numbered, whatever the pieces in which the file is read."""
    source = LinesDatasource.__new__(LinesDatasource)
    source.lines = 2
    content = "a\u2028b\x85c\rd\n\ne\nf\ng".encode()
    rows = [row for block in source._read_stream(io.BytesIO(content), "") for row in block.to_pylist()]
    assert rows == [
        {"line": "a\u2028b\x85c\rd", "number": 1},
        {"line": "e", "number": 3},
        {"line": "f", "number": 4},
        {"line": "g", "number": 5},
    ]
    assert [len(block) for block in source._read_stream(io.BytesIO(content), "")] == [2, 2]
