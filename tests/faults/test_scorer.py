"""Row 9: a gap reward that is slow or down. The real server process asks an upstream for its scores, and the
upstream stops answering, or is gone."""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.figures import Figure, count, say
from tests.load.processes import Server, server
from tests.ports import free_port

pytestmark = pytest.mark.slow
SCORING_S = 1.0
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the price?"}], "reference": "No.", "max_iterations": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """One that generates, one that scores."""
    logs = tmp_path_factory.mktemp("upstreams")
    with upstream(logs / "generating.log") as generating, upstream(logs / "scoring.log") as scoring:
        yield generating, scoring


@contextmanager
def upstream(log: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "tests.load.upstream", "--port", str(port), "--length", "8"]
    with server("upstream", command, port=port, log=log) as found:
        yield found


@pytest.fixture
def gateway(upstreams: tuple[Server, Server], tmp_path: Path) -> Iterator[Server]:
    generating, scoring = upstreams
    port = free_port()
    command = [
        sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--policy-url", generating.url,
        "--improver-url", generating.url, "--gap-reward-url", scoring.url, "--improve-turn", "Improve.",
        "--database", "none",
    ]  # fmt: skip
    environment = {
        "PIT_SCORING_TIMEOUT_S": str(SCORING_S),
        "PIT_UPSTREAM_HEALTH_INTERVAL_S": "0.5",
        "PIT_UPSTREAM_CONNECT_TIMEOUT_S": "1",
    }
    log = tmp_path / "pit.log"
    with server("pit", command, port=port, log=log, ready="/health/ready", env=environment) as found:
        yield found


@pytest.mark.parametrize("fault", ["slow", "down"])
async def test_scoring_that_fails_is_said(
    upstreams: tuple[Server, Server], gateway: Server, fault: str
) -> None:
    """best_effort answers and says that nothing was scored, required is a 503; both in time."""
    scoring, times = upstreams[1], count(100, 5)
    skipped = refused = 0
    slowest = 0.0
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:

        async def ask(mode: str) -> httpx.Response:
            nonlocal slowest
            begun = time.monotonic()
            answer = await http.post("/v1/improve", json=ASKED | {"scoring": mode})
            slowest = max(slowest, time.monotonic() - begun)
            return answer

        assert (await ask("required")).json()["scoring"] == "gap"
        # A process that is stopped takes connections and answers nothing: slow. One that is killed is down.
        scoring.process.send_signal(signal.SIGSTOP if fault == "slow" else signal.SIGKILL)
        try:
            for _ in range(times):
                best, required = await asyncio.gather(ask("best_effort"), ask("required"))
                answer = best.json()
                skipped += best.status_code == 200 and answer["scoring"] == "skipped"
                error = required.json().get("error", {})
                refused += required.status_code == 503 and error["code"] == "scoring_unavailable"
            streamed = (await http.post("/v1/improve", json=ASKED | {"stream": True})).text
            async with asyncio.timeout(5):
                while not (ready := (await http.get("/health/ready")).json())["degraded"]:
                    await asyncio.sleep(0.1)
        finally:
            if fault == "slow":
                scoring.process.send_signal(signal.SIGCONT)
        if fault == "slow":
            async with asyncio.timeout(15):
                while (await ask("best_effort")).json()["scoring"] != "gap":
                    await asyncio.sleep(0.2)
    assert "event: scoring.skipped" in streamed
    assert ready["status"] == "ok" and "gap reward" in ready["degraded"][0]
    say(
        Figure(
            9,
            f"the gap reward is {fault}, {times} requests of each kind",
            f"best_effort: {skipped} say scoring skipped; required: {refused} are 503; slowest"
            f" {slowest:.1f} s at a deadline of {SCORING_S:g} s",
            "all of them, within the deadline and a second",
            skipped == refused == times and slowest < SCORING_S + 1.5,
        )
    )
