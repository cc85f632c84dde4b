"""Run the HTTP server in this process: bind, start the models, say when it is ready, end cleanly on
SIGTERM."""

import asyncio
import signal
import socket
from functools import partial
from types import FrameType

import uvicorn
from rich.console import Console

from app.keys import guard
from app.limits.limits import check_limits
from app.logs import quiet_loop_errors
from app.main import create_app
from app.runtime import Runtime
from app.settings import Settings, SettingsError
from app.start import read_checkpoints, start_models
from app.tracing import check_tracing

STARTUP_FAILED = 2
DEFAULT_URL = "http://127.0.0.1:8000"
"""Where the other commands look for the server unless they are told."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients and proxies keep one in their pools (httpx 5 s,
load balancers 60 s). The side that closes first must be the client, or a request can meet the closing."""


def serve(settings: Settings, console: Console) -> int:
    """Serve until a signal; return the exit status. Raises `CheckpointError` and `SettingsError` before
    anything runs."""
    check_tracing(settings)
    check_limits(settings)
    checkpoints = read_checkpoints(settings)
    listener = _bind(settings.host, settings.port)
    try:
        settings = guard(settings, listener.getsockname()[0])
    except SettingsError:
        listener.close()
        raise
    app = create_app(settings, partial(start_models, checkpoints=checkpoints))
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
    )
    server = uvicorn.Server(config)
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


async def _serve(
    server: uvicorn.Server, listener: socket.socket, runtime: Runtime, console: Console, url: str
) -> int:
    asyncio.get_running_loop().set_exception_handler(quiet_loop_errors)
    announcer = asyncio.create_task(_announce(server, runtime, console, url))
    try:
        await server.serve(sockets=[listener])
    finally:
        announcer.cancel()
    return STARTUP_FAILED if runtime.failure else 0


async def _announce(server: uvicorn.Server, runtime: Runtime, console: Console, url: str) -> None:
    """Say when the server is ready; a server that cannot become ready ends."""
    await runtime.settled.wait()
    if runtime.failure:
        Console(stderr=True).print(
            f"[bold red]error:[/] {_escape(runtime.failure)}", highlight=False, soft_wrap=True
        )
        server.should_exit = True
    elif runtime.served:
        for note in runtime.served.notes:
            console.print(f"[yellow]note:[/] {_escape(note)}", highlight=False, soft_wrap=True)
        where = "" if url == DEFAULT_URL else f" --url {url}"
        names = ", ".join(f"{what} {name}" for what, name in runtime.served.names().items())
        console.print(
            f"[bold green]ready[/] on {url} after {runtime.ready_after_s:.1f} s ({_escape(names)})."
            f' Try: pit improve "your question" --reference "your draft"{where}',
            highlight=False,
            soft_wrap=True,
        )


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
        listener.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another with --host and"
            " --port."
        ) from None
    listener.set_inheritable(False)
    return listener
