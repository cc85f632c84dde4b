"""A Redis of the test session: Debian's package, a temporary directory, a Unix socket."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "redis-server"


class RedisServer:
    """A redis-server that can be ended and started again; what it held is lost then."""

    def __init__(self, program: str, root: Path) -> None:
        self.socket = root / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [
            program, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(root), "--save", "",
            "--appendonly", "no",
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A fresh one. Raises `RuntimeError` with a reason to skip."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise RuntimeError(f"Redis is not installed: apt-get install {PACKAGE}")
    # A socket's path may have 107 bytes: too few for pytest's directories.
    root = Path(tempfile.mkdtemp(prefix="pit-redis-"))
    server = RedisServer(program, root)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)
