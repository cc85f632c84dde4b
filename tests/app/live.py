"""A server of fakes on a real socket, in a thread of the tests' own process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import factory_of


@contextmanager
def server_in_a_thread(models: Models, **settings: Any) -> Iterator[str]:
    """Its URL. It takes requests once its models are up."""
    application = create_app(Settings(**settings), factory_of(models))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        up = threading.Event()

        async def run() -> None:
            task = asyncio.create_task(server.serve(sockets=[listener]))
            await application.state.runtime.settled.wait()
            up.set()
            await task

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            assert up.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
