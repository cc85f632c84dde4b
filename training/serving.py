"""Starts `pit serve` for an evaluation and stops it again.

`training` does not import `app`: the server is a process of its own, the same command that users run, and
everything goes over HTTP.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from training.errors import CheckpointError, TrainingError
from training.machine import free_port

CHECKPOINTS = {"--policy": "policy", "--improver": "improver", "--gap-reward": "gap_reward"}


def server_command(output: Path, **others: Path) -> list[str]:
    """`pit serve` with a run's three checkpoints; `others` names directories to take in their place, as
    `improver=DIR`.

    Raises:
        CheckpointError: one of them is missing.
    """
    command = [sys.executable, "-m", "app.cli", "serve", "--database", "none"]
    for option, name in CHECKPOINTS.items():
        directory = others.get(name, output / name)
        if not (directory / "pit.json").exists():
            raise CheckpointError(
                f"{directory} is not a checkpoint; train it first: pit-train run CONFIG.yaml"
            )
        command += [option, str(directory)]
    return command


@contextmanager
def server(command: Sequence[str], log: Path, deadline_s: float = 180.0) -> Iterator[str]:
    """Run the command on a free port and give its URL once it is ready; end it on the way out, whatever
    happens.

    Raises:
        TrainingError: it ended, or was not ready in time; with the end of its log.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file, _terminate_as_exit():
        # A session of its own: Ctrl-C reaches this process only, which then ends the server in good order.
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_ready(process, url, log, deadline_s)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    what = "was not ready" if process.poll() is None else f"ended with status {process.returncode}"
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    raise TrainingError(f"pit serve {what} within {deadline_s:g} s; the end of its log {log}:\n{tail}")


def _stop(process: subprocess.Popen[bytes], grace_s: float = 40.0) -> None:
    """SIGTERM, and what is left of its session after the grace SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that the server is stopped then too."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: then signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
