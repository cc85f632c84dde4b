"""`pit runs` and `pit replay` over a real socket."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from app.cli import app
from app.improve.options import Models
from app.main import create_app
from app.replay import difference
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the price ?"}], "candidates": 2, "patience": 3,
}  # fmt: skip


class Serving:
    """A server in a thread; `models` can be changed while it runs."""

    def __init__(self, database: str) -> None:
        self.models = fake_models()
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.app = create_app(Settings(database=database), factory_of(self.models))
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error"))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[listener])))
        self.thread.start()

    def use(self, models: Models) -> None:
        self.app.state.runtime.served.models = models

    def improve(self, **change: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/v1/improve", json=BODY | change, timeout=20)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    found = Serving(f"sqlite:///{tmp_path}/pit.db")
    try:
        while True:
            try:
                if httpx.get(f"{found.url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
        yield found
    finally:
        found.stop()


def pit(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_run_without_a_seed_of_its_own_replays_identically(serving: Serving) -> None:
    run = serving.improve()
    shown = pit("replay", run["id"], "--url", serving.url)
    assert shown.exit_code == 0, shown.output
    assert "identical: " in shown.stdout
    found = json.loads(pit("replay", run["id"], "--url", serving.url, "--json").stdout)
    assert (found["identical"], found["run"], found["models"]) == (True, run["id"], [])
    assert found["was"] == run
    listed = json.loads(pit("runs", "--url", serving.url, "--json").stdout)
    assert len(listed["data"]) == 1, "a replay is not stored"


def test_another_model_is_named_and_its_texts_are_shown(serving: Serving) -> None:
    run = serving.improve(reference="no", seed=1)
    serving.use(fake_models(improver=FakeEngine(model_id="fake-newer", script=lambda _: "much obliged")))
    shown = pit("replay", run["id"], "--url", serving.url)
    assert shown.exit_code == 1, shown.output
    assert "improver: was fake-improver, is fake-newer" in shown.stdout
    assert "{+much obliged+}" in shown.stdout
    assert "iteration 1" in shown.stdout
    assert shown.stdout.rstrip().endswith("different")
    found = json.loads(pit("replay", run["id"], "--url", serving.url, "--json").stdout)
    assert (found["identical"], found["models"]) == (False, ["improver"])
    assert 1 in found["iterations"]


def test_what_cannot_be_replayed_is_said_in_one_line(serving: Serving) -> None:
    unknown = pit("replay", "imp_" + "0" * 32, "--url", serving.url)
    assert (unknown.exit_code, "no run" in unknown.stderr) == (2, True)
    assert pit("replay", "imp_0", "--url", "http://127.0.0.1:9").exit_code == 2


def test_runs_lists_the_latest(serving: Serving) -> None:
    assert "No runs are stored" in pit("runs", "--url", serving.url).stdout
    first, second = serving.improve(), serving.improve()
    lines = pit("runs", "--url", serving.url).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", second["id"], first["id"]]
    assert lines[1].split()[3:] == ["completed", second["stop_reason"], str(len(second["iterations"]))]
    shown = pit("runs", "--url", serving.url, "--limit", "1").stdout
    assert f"pit runs --after {second['id']}" in shown
    assert first["id"] in pit("runs", "--url", serving.url, "--after", second["id"]).stdout


RESULT: dict[str, Any] = {
    "models": {"improver": "a"}, "identities": {"improver": "sha256:1"}, "stop_reason": "gap",
    "reference": "x", "response": "y",
    "iterations": [{"text": "y", "gap": 1.0, "accepted": True, "candidate": 0}],
}  # fmt: skip
ITERATION = RESULT["iterations"][0]


@pytest.mark.parametrize(
    ("change", "identical"),
    [
        ({}, True),
        ({"ms": 5}, True),
        ({"models": {"improver": "b"}}, True),  # another name that answers the same
        ({"iterations": [ITERATION | {"gap": 1.00001}]}, True),
        ({"iterations": [ITERATION | {"gap": 1.01}]}, False),
        ({"iterations": [ITERATION | {"gap": None}]}, False),
        ({"iterations": [ITERATION | {"text": "z"}]}, False),
        ({"iterations": [ITERATION | {"accepted": False}]}, False),
        ({"iterations": [ITERATION, ITERATION]}, False),
        ({"iterations": []}, False),
        ({"stop_reason": "patience"}, False),
        ({"reference": "z"}, False),
        ({"response": "z"}, False),
    ],
)
def test_what_counts_as_a_difference(change: dict[str, Any], identical: bool) -> None:
    assert difference(RESULT, RESULT | change)["identical"] is identical
    assert difference(RESULT | change, RESULT)["identical"] is identical


def test_a_model_of_the_same_name_with_other_files_is_another() -> None:
    found = difference(RESULT, RESULT | {"identities": {"improver": "sha256:2"}})
    assert (found["identical"], found["models"]) == (True, ["improver"])


def test_db_upgrade_says_what_it_did(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/pit.db"
    assert "upgraded from empty" in pit("db", "upgrade", "--database", url).stdout
    assert "is at revision" in pit("db", "upgrade", "--database", url).stdout
    for wrong in ("none", "mysql://a/b", "sqlite:////proc/nowhere/pit.db"):
        refused = pit("db", "upgrade", "--database", wrong)
        assert refused.exit_code == 2
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
