"""Run the HTTP server in this process: bind, start the models, say when it is ready, drain on SIGTERM."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from app import DEFAULT_URL
from app.exposure import guard
from app.improve.options import Models
from app.lifecycle import Lifecycle
from app.limits.limits import check_limits
from app.logs import quiet_loop_errors
from app.main import create_app
from app.protocol import SPARE_CONNECTIONS, Limits, Protocol
from app.runs import Runs
from app.runtime import ModelFactory, Runtime
from app.settings import Settings, SettingsError
from app.start import read_checkpoints, start_models
from app.tracing import check_tracing

STARTUP_FAILED = 2
KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients and proxies keep one in their pools (httpx 5 s,
load balancers 60 s). The side that closes first must be the client, or a request can meet the closing."""
LEFT_S = 2.0
"""How long cancelled requests may take to answer, and answered clients to read, before the server ends."""
FILES_BESIDE = 256
"""Files that are open beside the connections: engines, database, libraries."""
UNSENT_BYTES = 16 * 1024
"""What the kernel takes of an answer before it sends it. The transport holds 64 KiB more; then the answer
waits."""
TCP_NOTSENT_LOWAT = 25
"""Linux' option, which Python 3.11 does not name."""
log = logging.getLogger(__name__)


def serve(settings: Settings, console: Console) -> int:
    """Serve until a signal; return the exit status. Raises `CheckpointError` and `SettingsError` before
    anything runs."""
    check_tracing(settings)
    check_limits(settings)
    checkpoints = read_checkpoints(settings)
    return run(settings, partial(start_models, checkpoints=checkpoints), console)


def run(settings: Settings, factory: ModelFactory, console: Console) -> int:
    """Serve the models of a factory until a signal: 0 after a drain, also where requests were cancelled at
    the end of the grace; 128 and the signal's number where a second one forced the end."""
    listener = _bind(settings.host, settings.port)
    try:
        settings = guard(settings, listener.getsockname()[0])
    except SettingsError:
        listener.close()
        raise
    _allow_files(settings.max_connections)
    app = create_app(settings, factory)
    config = uvicorn.Config(
        app,
        http=partial(Protocol, Limits.of(settings)),  # type: ignore[arg-type]  # it is called as a class is
        ws="none",
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(LEFT_S),
    )
    server = _Server(config, app, settings.shutdown_grace_s)
    # uvicorn raises the signal again when it has shut down: this handler makes that a normal end, with
    # status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    console.print(f"starting on {url} (this takes about half a minute)", highlight=False)
    # uvicorn's own choice: uvloop where it is installed, which costs a fifth less than asyncio's loop.
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(server, listener, app.state.runtime, console, url))


class _Server(uvicorn.Server):
    """uvicorn, which drains before it shuts down: it goes on listening, so that new requests get an answer,
    until those in flight have theirs."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_s: float) -> None:
        super().__init__(config)
        self.runs: Runs = app.state.runs
        self.lifecycle: Lifecycle = app.state.runtime.lifecycle
        self.grace_s = grace_s
        self.forced_by = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of SIGTERM and SIGINT: the first drains, the second cancels, the third ends the process."""
        self._captured_signals.append(sig)
        if self.forced_by:
            os._exit(128 + sig)
        if self.lifecycle.draining:
            self.forced_by, self.lifecycle.forced = sig, True
        self.lifecycle.draining = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifecycle.draining = True
        if not await self.lifecycle.finished(self.grace_s):
            number = self.lifecycle.in_flight
            why = "a second signal" if self.forced_by else f"the end of {self.grace_s:g} s of grace"
            log.warning("requests cancelled at %s: %d", why, number)
            self.lifecycle.cut()
            await self.runs.cancel_all()
            if not await self.lifecycle.finished(LEFT_S, unless_forced=False):
                self.lifecycle.end()
                await self.lifecycle.finished(LEFT_S, unless_forced=False)
        await super().shutdown(sockets)


async def _serve(
    server: _Server, listener: socket.socket, runtime: Runtime, console: Console, url: str
) -> int:
    asyncio.get_running_loop().set_exception_handler(quiet_loop_errors)
    announcer = asyncio.create_task(_announce(server, runtime, console, url))
    try:
        await server.serve(sockets=[listener])
    finally:
        announcer.cancel()
    if runtime.failure:
        return STARTUP_FAILED
    return 128 + server.forced_by if server.forced_by else 0


async def _announce(server: uvicorn.Server, runtime: Runtime, console: Console, url: str) -> None:
    """Say when the server is ready; a server that cannot become ready ends."""
    await runtime.settled.wait()
    # What is there by now stays. A full collection would look through all of it, and everybody would wait for
    # that: 60 ms and more, every few thousand requests.
    gc.collect()
    gc.freeze()
    if runtime.failure:
        Console(stderr=True).print(
            f"[bold red]error:[/] {_escape(runtime.failure)}", highlight=False, soft_wrap=True
        )
        server.should_exit = True
    elif runtime.served:
        for note in runtime.served.notes:
            console.print(f"[yellow]note:[/] {_escape(note)}", highlight=False, soft_wrap=True)
        names = ", ".join(f"{what} {name}" for what, name in runtime.served.names().items())
        console.print(
            f"[bold green]ready[/] on {url} after {runtime.ready_after_s:.1f} s ({_escape(names)})."
            f" Try: {first_command(runtime.served.models, url)}",
            highlight=False,
            soft_wrap=True,
        )


def first_command(models: Models, url: str) -> str:
    """What somebody may type who has just started a server of these models: it is not refused."""
    strategy = "" if models.improver else " --strategy self_refine"
    where = "" if url == DEFAULT_URL else f" --url {url}"
    return f'pit improve "your question" --reference "your draft"{strategy}{where}'


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """uvicorn has handled the signal already."""


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before anything slow happens. Raises `SettingsError` when it is taken or the host is
    wrong."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # every connection inherits it from the listener
            listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another with --host and"
            " --port."
        ) from None
    listener.set_inheritable(False)
    return listener


def _allow_files(connections: int) -> None:
    """Let the process have a file for each connection, as far as the system's hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_CONNECTIONS + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning("only %d files may be open here: too few for %d connections", hard, connections)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
