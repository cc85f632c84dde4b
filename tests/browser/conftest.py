"""Headless Chromium, and the page on a server of fakes that runs in the test's own process."""

import asyncio
import shutil
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.async_api import Browser, Page, async_playwright, expect

from app.main import create_app
from app.runtime import ModelFactory
from app.settings import Settings
from app.web.site import site
from tests.app.fakes import factory_of, fake_models

DEADLINE_MS = 60_000
"""How long a page may take to show something, on a machine that does much else."""
expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="session")
async def browser() -> AsyncGenerator[Browser, None]:
    """Debian's Chromium: none is fetched."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    async with async_playwright() as playwright:
        # A container has root, who gets no sandbox (the pages are our own), and little shared memory.
        found = await playwright.chromium.launch(
            executable_path=program, chromium_sandbox=False, args=["--disable-dev-shm-usage"]
        )
        yield found
        await found.close()


def static(name: str) -> str:
    """The address of a file of the page."""
    return f"/static/{site().digest}/{name}"


@dataclass
class Watched:
    """A page and what it did that it should not: errors on the console, requests to elsewhere."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    async def open(self, path: str = "/") -> Page:
        await self.page.goto(self.url + path)
        return self.page


@asynccontextmanager
async def watched(
    browser: Browser, url: str, *, refused: tuple[int, ...] = (), **context: Any
) -> AsyncGenerator[Watched, None]:
    """A new page of a new context, as of a reader who was never here. At the end it has to have been quiet:
    no error on the console but for answers of the statuses in `refused`, and no request to elsewhere."""
    opened = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
    page = await opened.new_page()
    page.set_default_timeout(DEADLINE_MS)
    found = Watched(page, url)

    def said(message: Any) -> None:
        expected = any(f"status of {status}" in message.text for status in refused)
        if message.type in ("error", "warning") and not expected:
            found.complaints.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "blob:" + url)):
            found.complaints.append(f"asked for {request.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("request", asked)
    try:
        yield found
        assert found.complaints == []
    finally:
        await opened.close()


@asynccontextmanager
async def serving(app: FastAPI, *, settled: bool = True) -> AsyncGenerator[str, None]:
    """The address of an application behind a socket; not `settled`: its models may still load."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    if settled:
        # The socket takes requests before the store is open, and would answer them with 503.
        await asyncio.wait_for(app.state.runtime.settled.wait(), 30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


Start = Callable[..., Awaitable[str]]


@pytest.fixture
async def start(tmp_path: Any) -> AsyncGenerator[Start, None]:
    """`url = await start(models)`: a server of fakes, with a store unless the settings say otherwise."""
    async with AsyncExitStack() as stack:

        async def begin(models: Any = None, *, factory: ModelFactory | None = None, **settings: Any) -> str:
            usual: dict[str, Any] = {"database": f"sqlite:///{tmp_path}/pit.db", "store_timeout_s": 20}
            app = create_app(Settings(**(usual | settings)), factory or factory_of(models or fake_models()))
            return await stack.enter_async_context(serving(app, settled=factory is None))

        yield begin


Open = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def visit(browser: Browser) -> AsyncGenerator[Open, None]:
    """`seen = await visit(url)`: a page that is watched to the end of the test."""
    async with AsyncExitStack() as stack:

        async def begin(url: str, **options: Any) -> Watched:
            return await stack.enter_async_context(watched(browser, url, **options))

        yield begin
