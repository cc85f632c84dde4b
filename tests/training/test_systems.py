"""One call to a server, and a server of the evaluation's own: deadlines, retries, start and stop."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from training.errors import CheckpointError, TrainingError
from training.serving import server, server_command
from training.systems import CallFailed, Client, Plan

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------------------------------- one call


def client_of(answer: Callable[[httpx.Request], httpx.Response], deadline_s: float = 5.0) -> Client:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")
    return Client(http, deadline_s, pause_s=0.01)


async def test_a_call_is_repeated_only_where_nothing_was_begun() -> None:
    calls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        if len(calls) == 1:
            raise httpx.ConnectError("refused")
        if len(calls) == 2:
            return httpx.Response(503, headers={"retry-after": "0"}, json={"error": {"message": "full"}})
        return httpx.Response(200, json={"ok": 1})

    assert await client_of(answer).post("/v1/score", {}) == {"ok": 1}
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (httpx.Response(400, json={"error": {"message": "Too long."}}), True),
        (httpx.Response(500, text="<html>"), False),
        (httpx.Response(503, json={"error": {"message": "no retry-after"}}), False),
    ],
)
async def test_other_answers_are_final(answer: httpx.Response, refused: bool) -> None:
    calls: list[int] = []

    def give(_: httpx.Request) -> httpx.Response:
        calls.append(1)
        return answer

    with pytest.raises(CallFailed) as caught:
        await client_of(give).post("/v1/improve", {})
    assert caught.value.refused is refused
    assert len(calls) == 1


async def test_a_broken_connection_is_not_repeated_because_the_server_may_have_begun() -> None:
    calls: list[int] = []

    def give(_: httpx.Request) -> httpx.Response:
        calls.append(1)
        raise httpx.ReadError("reset")

    with pytest.raises(CallFailed, match="ReadError"):
        await client_of(give).post("/v1/improve", {})
    assert len(calls) == 1


async def test_a_call_ends_at_its_deadline_and_says_what_it_waited_for() -> None:
    def give(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"retry-after": "30"}, json={"error": {"message": "It starts."}})

    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"within 0.3 s \(It starts"):
        async with asyncio.timeout(5):  # without a deadline the call would wait for ever
            await client_of(give, deadline_s=0.3).post("/v1/improve", {})
    assert time.monotonic() - started < 3


# ---------------------------------------------------------------------------------------- a server of its own

STUB = """
import http.server, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
    def log_message(self, *_): pass
print("pid", os.getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_is_stopped_whatever_happens(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        server([sys.executable, "-c", STUB], log, 30) as url,
    ):
        assert httpx.get(f"{url}/health/ready").status_code == 200
        pid = int(log.read_text().split()[1])
        raise RuntimeError("in the middle")
    assert not alive(pid)


def test_sigterm_to_the_evaluation_stops_its_server_too(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    program = (
        "import sys, time; from pathlib import Path; from training.serving import server\n"
        f"with server([sys.executable, '-c', {STUB!r}], Path({str(log)!r}), 30):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    pid = int(log.read_text().split()[1])
    assert alive(pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not alive(pid)
    process.stdout.close()


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    failing = [sys.executable, "-c", "print('no such checkpoint'); raise SystemExit(2)"]
    problem = r"(?s)ended with status 2.*no such checkpoint"
    with pytest.raises(TrainingError, match=problem), server(failing, log, 30):
        pass
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(TrainingError, match=r"was not ready within 0\.5 s"), server(silent, log, 0.5):
        pass


def test_checkpoints_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"policy is not a checkpoint.*pit-train run"):
        server_command(tmp_path)


def test_every_setting_that_changes_an_answer_is_in_the_header() -> None:
    assert set(asdict(Plan())) == {
        "iterations",
        "self_refine_iterations",
        "temperature",
        "seed",
        "from_draft",
    }
