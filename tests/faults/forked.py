"""Server processes that start in a moment: forked from one that has imported everything. Their engines are
fakes, everything else is real."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

USER_TOO = () if os.geteuid() == 0 else ("--user", "--map-root-user")
"""What unshare needs besides, to mount something."""
ROOT = Path(__file__).resolve().parents[2]
NURSERY = """
import logging, os, signal, sys
import uvicorn
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models
import app.store.store, app.api.chat, aiosqlite, asyncpg, uvicorn.protocols.http.httptools_impl

def serve(url, port):
    engine = FakeEngine(delay_s=0.005)
    app = create_app(Settings(database=url), factory_of(fake_models(policy=engine, improver=engine)))
    uvicorn.run(app, port=port, log_level="critical", access_log=False)

logging.disable(logging.ERROR)  # of databases that fail as they are meant to
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
for line in sys.stdin:
    url, port = line.split()
    if not (pid := os.fork()):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(0)
        try:
            serve(url, int(port))
        finally:
            os._exit(0)
    print(pid, flush=True)
"""


@dataclass
class Server:
    pid: int
    url: str

    def kill(self) -> None:
        """SIGKILL, where it still runs; returns once it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)


class Nursery:
    """Forks servers. `prefix` is a command that runs the nursery in another place (a mount namespace)."""

    has_a_namespace = False

    def __init__(self, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", NURSERY],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.servers: list[Server] = []
        assert self._line() == "up"

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    async def server(self, database: str) -> Server:
        """A ready server of this database."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert self.process.stdin
        print(database, port, file=self.process.stdin, flush=True)
        server = Server(int(self._line()), f"http://127.0.0.1:{port}")
        self.servers.append(server)
        async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(30):
            while True:
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return server
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.01)

    def kill_all(self) -> None:
        for server in self.servers:
            server.kill()
        self.servers.clear()


@contextmanager
def nursery(*prefix: str) -> Iterator[Nursery]:
    found = Nursery(*prefix)
    try:
        yield found
    finally:
        found.kill_all()
        found.process.kill()
        found.process.wait()
