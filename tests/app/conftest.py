"""A server of fakes, reached without a socket."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import factory_of, fake_models

Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncGenerator[Serve, None]:
    """`client = await serve(models)`: a ready server of these models; its application is `client.app`."""
    async with AsyncExitStack() as stack:

        async def start(models: Models | None = None, **settings: Any) -> httpx.AsyncClient:
            app = create_app(Settings(**settings), factory_of(models or fake_models()))
            return await stack.enter_async_context(running(app))

        yield start


class running:
    """Runs an application's lifespan around an httpx client, until its models are up or have failed."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> httpx.AsyncClient:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        await self.app.state.runtime.settled.wait()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://server")
        client.app = self.app  # type: ignore[attr-defined]
        return await self._stack.enter_async_context(client)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
