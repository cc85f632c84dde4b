"""Processes under measurement: start them, wait for them, read their CPU time and memory, end them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]


class LoadError(Exception):
    """A measurement that cannot be made. The message says why, and what to do."""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """User and system time of the whole tree, since each process began; that of ended children too."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_mib(self) -> float:
        """PSS of the whole tree: memory shared with other processes counts in proportion."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss / 2**20
        return total

    def rss_mib(self) -> float:
        """Resident memory of the process itself."""
        return float(self.process.memory_info().rss / 2**20)

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def server(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    ready: str = "/health",
    deadline_s: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Iterator[Server]:
    """Run a server on loopback and give it once `ready` answers 200; end its whole session on the way out.

    Raises `LoadError` with the end of its log when it is not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cwd.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(name, process, url + ready, log, deadline_s)
        yield Server(name, url, psutil.Process(process.pid))
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(name: str, process: "subprocess.Popen[bytes]", url: str, log: Path, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    what = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise LoadError(f"{name} {what} after {deadline_s:g} s at most; the end of its log {log}:\n{tail}")
