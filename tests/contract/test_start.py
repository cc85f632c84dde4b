"""Starting and stopping real engines: two at once, a golden sample that fails, the whole command `pit
serve`."""

import asyncio
import http.client
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from app.engines.base import Prompt, Sampling
from app.errors import CheckpointError, EngineFailed
from app.runtime import Served, start_models
from app.settings import Settings

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


def engines_here() -> set[int]:
    """The engine processes of this one, by their objects: in a whole session their titles are not set."""
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def engine_processes(pid: int) -> set[int]:
    """Those of another process that run."""
    return {
        child.pid
        for child in psutil.Process(pid).children(recursive=True)
        if "Engine" in child.name() and child.status() != psutil.STATUS_ZOMBIE
    }


async def only_these_are_left(before: set[int], seconds: float = 30) -> bool:
    """An engine process that was told to end may need a moment on a busy machine; it must not stay."""
    for _ in range(int(seconds / 0.1)):
        if engines_here() <= before:
            return True
        await asyncio.sleep(0.1)
    return False


async def test_two_engines_start_together_and_leave_nothing_behind(
    served: Served, checkpoints: dict[str, Path]
) -> None:
    """Policy and improver with different weights, each counted under its name; a closed engine says so."""
    before = engines_here()
    pair = await start_models(
        Settings(policy=checkpoints["both"], improver=checkpoints["improver"], engine_metrics=True)
    )
    assert len(engines_here() - before) == 2
    policy, improver = pair.models.policy, pair.models.improver
    assert policy is not None and improver is not None and policy is not improver
    assert pair.engine_metrics is not None
    for model in (policy, improver):
        async for _ in model.generate(Prompt([3, 10, 1, 4], 4), Sampling(max_tokens=3)):
            pass
    counted = {
        name: pair.engine_metrics.get_sample_value(
            "vllm:prompt_tokens_total", {"model_name": name, "engine": "0"}
        )
        for name in ("both", "improver")
    }
    assert all(tokens and tokens >= 4 for tokens in counted.values()), counted
    await pair.close()
    assert await only_these_are_left(before)
    with pytest.raises(EngineFailed):
        await policy.check_health()
    with pytest.raises(EngineFailed):
        await anext(policy.generate(Prompt([3, 10, 1, 4], 4), Sampling(max_tokens=1)))


async def test_a_golden_sample_that_differs_stops_the_start(
    served: Served, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The files match their hashes, and the model does not do what training saw."""
    before = engines_here()
    changed = tmp_path / "changed"
    shutil.copytree(checkpoints["both"], changed)
    manifest = json.loads((changed / "pit.json").read_text())
    manifest["golden"][2]["logprobs"][0] -= 0.01
    (changed / "pit.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"golden sample 3 differ from training by 0\.01"):
        await start_models(Settings(policy=changed))
    assert await only_these_are_left(before)


def test_pit_serve_from_start_to_end(checkpoints: dict[str, Path]) -> None:
    """The command itself: /health/live at once, ready later, an improvement, SIGTERM, status 0, no process
    left. A connection that idles meanwhile stays open: clients' pools keep theirs for 5 s and more."""
    command = [
        sys.executable, "-m", "app.cli", "serve", "--port", "0", "--log-format", "json",
        "--policy", str(checkpoints["both"]), "--gap-reward", str(checkpoints["gap"]),
    ]  # fmt: skip
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    try:
        assert server.stdout is not None
        match = re.search(r"http://[0-9.:]+", server.stdout.readline())
        assert match is not None
        url = match.group()
        wait_for(f"{url}/health/live", 10)
        early = httpx.get(f"{url}/health/ready", timeout=10)
        assert (early.status_code, early.json()["reasons"]) == (503, ["the models are starting"])
        idle = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        idle_since = time.monotonic()
        assert status_of(idle) == 200
        wait_for(f"{url}/health/ready", 150)
        time.sleep(max(0.0, idle_since + 6 - time.monotonic()))
        assert status_of(idle) == 200
        engines = engine_processes(server.pid)
        assert len(engines) == 1
        improve = [
            sys.executable,
            "-m",
            "app.cli",
            "improve",
            "Hello",
            "--url",
            url,
            "--max-tokens",
            "8",
            "--json",
        ]
        answer = subprocess.run(improve, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(answer.stdout)["scoring"] == "gap"
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert not any(psutil.pid_exists(pid) for pid in engines)
        written = server.stdout.read()
        assert "Traceback" not in written
        records = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
        (asked,) = (record for record in records if record.get("route") == "/v1/improve")
        assert (asked["status"], asked["logger"]) == (200, "app.access")
        assert asked["completion_tokens"] > 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def status_of(connection: http.client.HTTPConnection) -> int:
    """Of a request on this connection; raises where the server has closed it."""
    connection.request("GET", "/health/live")
    answer = connection.getresponse()
    answer.read()
    return answer.status


def wait_for(url: str, seconds: float) -> None:
    """Until it answers 200."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    pytest.fail(f"{url} did not answer 200 within {seconds:g} s")
