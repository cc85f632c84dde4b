"""`pit feedback` over a real socket."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app
from tests.app.test_replay import Serving, serving
from training.data import load_pairs

__all__ = ["serving"]


def pit(serving: Serving, *words: object, given: str | None = None) -> Any:
    return CliRunner().invoke(app, ["feedback", *map(str, words), "--url", serving.url], input=given)


def test_what_is_added_is_exported(serving: Serving, tmp_path: Path) -> None:
    run = serving.improve(seed=1)
    assert run["improved"]
    added = pit(serving, "add", run["id"], "--preferred", "response")
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["pairs"] == 1
    for words in (["--rating", 4], ["--rating", 2, "--response", "reference"]):
        assert pit(serving, "add", run["id"], *words).exit_code == 0
    corrected = pit(serving, "add", run["id"], "--correction", "-", "--response", 1, given="24 euros\n")
    assert json.loads(corrected.stdout)["type"] == "correction"
    file = tmp_path / "pairs.jsonl"
    shown = pit(serving, "export", file)
    assert shown.exit_code == 0, shown.output
    assert "2 pairs" in shown.stdout
    pairs = load_pairs("chat_pairs", file).pairs
    assert {pair.chosen for pair in pairs} == {run["response"], "24 euros"}
    cursor = json.loads(file.read_text().splitlines()[-1])["provenance"]["cursor"]
    assert "0 pairs" in pit(serving, "export", tmp_path / "more.jsonl", "--after", cursor).stdout
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["more.jsonl", "pairs.jsonl"]


def test_what_cannot_be_is_one_line(serving: Serving, tmp_path: Path) -> None:
    unknown = "imp_" + "0" * 32
    for words, status, why in (
        (["add", unknown, "--rating", 3], 1, "no run of this id"),
        (["add", unknown], 2, "--preferred, --rating and --correction"),
        (["add", unknown, "--rating", 3, "--preferred", "response"], 2, "say one of"),
        (["add", unknown, "--correction", tmp_path / "none"], 2, "cannot be read"),
        (["export", tmp_path / "no" / "file"], 2, "cannot write"),
    ):
        shown = pit(serving, *words)
        assert (shown.exit_code, "Traceback" in shown.output) == (status, False), shown.output
        assert why in shown.stderr


@pytest.fixture
def breaking() -> Iterator[str]:
    """The URL of a server that breaks its answer off."""
    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def test_half_an_export_is_none(breaking: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("earlier\n")
    shown = CliRunner().invoke(app, ["feedback", "export", str(file), "--url", breaking])
    assert shown.exit_code == 1
    assert "broke" in shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert file.read_text() == "earlier\n"


def test_a_database_that_fails_in_the_middle_breaks_the_export_off(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than let a part pass for all."""
    monkeypatch.setattr("app.feedback.PAGE", 1)
    run = serving.improve(seed=1)
    for which in ("response", "reference"):
        corrected = pit(serving, "add", run["id"], "--correction", "-", "--response", which, given="x")
        assert corrected.exit_code == 0
    table = serving.app.state.runs.store.feedback
    page = table.page

    async def fail_later(wanted: Any, after: int, limit: int) -> Any:
        if after:
            raise OSError("gone")
        return await page(wanted, after, limit)

    assert "2 pairs" in pit(serving, "export", tmp_path / "whole.jsonl").stdout
    monkeypatch.setattr(table, "page", fail_later)
    shown = pit(serving, "export", tmp_path / "part.jsonl")
    assert (shown.exit_code, "broke" in shown.stderr) == (1, True), shown.output
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["whole.jsonl"]
