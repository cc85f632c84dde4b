"""vLLM's own OpenAI server as a process: the yardstick of our surface, and an upstream for remote engines."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.ports import free_port

START_TIMEOUT_S = 300.0
CPU_ARGUMENTS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32")
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def vllm_serve(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """`vllm serve MODEL ARGUMENTS` on a CPU and a free port, as its base URL (without /v1), once it is
    healthy. Takes 20 to 40 s.

    Its output goes to `log`. Everything that it started ends with the block.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *(*CPU_ARGUMENTS, *arguments),
    ]
    # Without it the CPU platform puts the worker into a third process.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        # Its engine process is in the same session, and may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.25)
    raise RuntimeError(f"vLLM's server did not start. Its log ends:\n{log.read_text()[-3000:]}")
