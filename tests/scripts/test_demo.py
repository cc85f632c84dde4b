"""`make demo` with both commands played by small programs: order, messages, and a server that always stops.

The real commands run in the demo itself; here it is the script between them that is under test.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import demo
from tests.ports import free_port

PIT_TRAIN = """
import json, pathlib, sys
with open("calls.txt", "a") as calls:
    print("pit-train", *sys.argv[1:], file=calls)
if sys.argv[1] == "run":
    for role in ("policy", "improver", "gap_reward"):
        directory = pathlib.Path("runs/demo", role)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pit.json").write_text("{}")
else:
    print(json.dumps({"prompt": "What's the price?", "rejected": "It's 3."}))
"""
PIT = """
import http.server, os, sys
with open("calls.txt", "a") as calls:
    print("pit", *sys.argv[1:], file=calls)
if sys.argv[1] == "serve":
    if os.environ.get("DEAF"):
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.environ.get("BROKEN"):
        sys.exit("no such checkpoint")
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health/ready" else 404)
            self.end_headers()
    open("server.pid", "w").write(str(os.getpid()))
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Ready).serve_forever()
elif os.environ.get("NO_IMPROVEMENT"):
    sys.exit("engine failed")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in (("pit", PIT), ("pit-train", PIT_TRAIN)):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "BIN", tmp_path)
    monkeypatch.setattr(demo, "RUN", tmp_path / "runs" / "demo")
    return tmp_path


@pytest.fixture
def port() -> int:
    return free_port()


def calls(place: Path) -> list[str]:
    return (place / "calls.txt").read_text().splitlines()


def assert_stopped(place: Path) -> None:
    pid = int((place / "server.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_trains_serves_improves_and_stops(
    place: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    demo.demo(port, stay=False)
    url = f"http://127.0.0.1:{port}"
    assert calls(place) == [
        "pit-train run training/configs/demo.yaml",
        "pit-train data sample --index 0",
        f"pit serve --host 127.0.0.1 --port {port} --database sqlite:///runs/demo/pit.db --policy"
        " runs/demo/policy --improver runs/demo/improver --gap-reward runs/demo/gap_reward",
        f"pit improve What's the price? --reference It's 3. --url {url}",
    ]
    assert_stopped(place)
    printed = capfd.readouterr().out
    # The line that it offers must be one that a shell understands.
    [line] = re.findall(r"^curl .*$", printed, re.MULTILINE)
    shown = subprocess.run(
        ["bash", "-c", line.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout.splitlines()[-1]) == {
        "messages": [{"role": "user", "content": "What's the price?"}],
        "reference": "It's 3.",
    }
    demo.demo(port, stay=False)
    assert [call for call in calls(place) if call.startswith("pit-train run")] == calls(place)[:1]


def test_one_missing_checkpoint_resumes_training(place: Path, port: int) -> None:
    demo.demo(port, stay=False)
    (place / "runs/demo/gap_reward/pit.json").unlink()
    demo.train()
    assert calls(place)[-1] == "pit-train run training/configs/demo.yaml"


def test_a_taken_port_is_told_before_anything_is_trained(place: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(demo.DemoError, match=f"{port}.*make demo PORT={port + 1}"):
            demo.demo(port, stay=False)
    assert not (place / "calls.txt").exists()


def test_a_server_that_dies_is_told_with_its_last_words(
    place: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    started = time.monotonic()
    with pytest.raises(demo.DemoError, match=r"(?s)exit code 1:.*no such checkpoint"):
        demo.demo(port, stay=False)
    assert time.monotonic() - started < 20


def test_the_server_stops_when_the_improvement_fails(
    place: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_IMPROVEMENT", "1")
    with pytest.raises(demo.DemoError, match="`pit improve` failed with exit code 1"):
        demo.demo(port, stay=False)
    assert_stopped(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(place: Path, port: int, number: signal.Signals) -> None:
    code = (
        # A shell without job control starts what runs in its background deaf to Ctrl-C, tests and all.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import pathlib, sys\nfrom scripts import demo\n"
        f"demo.ROOT = demo.BIN = pathlib.Path({str(place)!r}); demo.RUN = demo.ROOT / 'runs/demo'\n"
        f"sys.argv = ['demo', '--port', '{port}']\n"
        "sys.stdin.isatty = sys.stdout.isatty = lambda: True\n"
        "demo.main()\n"
    )
    script = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        wait_for(
            lambda: (place / "calls.txt").exists() and "pit improve" in (place / "calls.txt").read_text()
        )
        time.sleep(0.5)
        assert script.poll() is None
        script.send_signal(number)
        assert script.wait(20) == (0 if number == signal.SIGINT else 143)
    finally:
        script.kill()
    assert_stopped(place)


def test_a_server_that_does_not_stop_is_killed(
    place: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEAF", "1")
    monkeypatch.setattr(demo, "STOP_WITHIN", 0.5)
    demo.demo(port, stay=False)
    assert_stopped(place)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
