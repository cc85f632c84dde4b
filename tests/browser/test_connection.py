"""What the page does when the connection breaks, the server is busy, starts, or asks for a key."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.async_api import expect

from app.runtime import Served
from app.settings import Settings
from tests.app.fakes import factory_of
from tests.browser.conftest import Open, Start
from tests.browser.story import BEST, Held, improve, story, write
from tests.security.conftest import add_key


class Wire:
    """A TCP connection's middle, which can be cut."""

    def __init__(self, target: str) -> None:
        self.port = urlsplit(target).port
        self.open: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there = await asyncio.open_connection("127.0.0.1", self.port)
        self.open |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()
        self.open.discard(writer)

    def cut(self) -> None:
        for writer in self.open:
            writer.transport.abort()


@asynccontextmanager
async def wire(target: str) -> AsyncGenerator[tuple[Wire, str], None]:
    found = Wire(target)
    server = await asyncio.start_server(found.carry, "127.0.0.1", 0)
    try:
        yield found, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        found.cut()
        server.close()


async def test_a_connection_that_breaks_costs_nothing(start: Start, visit: Open) -> None:
    """Cut in the middle of an iteration: the run goes on, the page goes on reading where it was, and no word
    is missing or there twice."""
    models = story(improver=Held)
    async with wire(await start(models)) as (line, url):
        seen = await visit(url)
        page = await seen.open()
        await write(page)
        await page.click("#run")
        for card in range(2):
            stream = page.locator(".card").nth(card).locator(".stream")
            await expect(stream).to_have_text("It has")
            line.cut()
            await expect(page.locator(".run > .notice")).to_contain_text("The connection was lost")
            await expect(page.locator(".run > .notice")).to_be_hidden()
            await expect(stream).to_have_text("It has")
            models.improver.go.release()  # type: ignore[union-attr]
        models.improver.go.release()  # type: ignore[union-attr]
        await expect(page.locator(".compare")).to_be_visible()
        await expect(page.locator(".card")).to_have_count(3)
        await expect(page.locator(".run > .notice")).to_be_hidden()
        await page.get_by_role("button", name="Edit text").click()
        await expect(page.get_by_label("The result")).to_have_value(BEST)
        assert models.improver.started == 3  # type: ignore[union-attr]
        assert seen.complaints
        seen.complaints = [text for text in seen.complaints if "ERR_" not in text]  # what was cut is said


async def test_the_page_is_there_before_the_models(start: Start, visit: Open) -> None:
    """It says that they load, takes what is written meanwhile, and enables itself."""
    loaded = asyncio.Event()

    async def slow(settings: Settings) -> Served:
        await loaded.wait()
        return await factory_of(story())(settings)

    page = await (await visit(await start(factory=slow), refused=(503,))).open()
    await expect(page.locator("#notice")).to_contain_text("the models are starting")
    await expect(page.locator("#health")).to_have_text("Loading")
    await page.fill("#prompt", "What about the price?")
    await expect(page.locator("#run")).to_be_disabled()
    await page.keyboard.press("Control+Enter")
    loaded.set()
    await expect(page.locator("#health")).to_have_text("Ready")
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("#prompt")).to_have_value("What about the price?")
    assert await page.locator(".run").count() == 0
    await page.keyboard.press("Control+Enter")
    await expect(page.locator(".compare")).to_be_visible()


async def test_a_server_with_keys_asks_for_one(start: Start, visit: Open, tmp_path: Path) -> None:
    """The page is open, its data is not. The key is sent from then on, and kept in this tab alone."""
    database = f"sqlite:///{tmp_path}/pit.db"
    key = await add_key(database)
    url = await start(story(), database=database)
    seen = await visit(url, refused=(401,))
    page = await seen.open("/runs")
    dialog = page.locator("#key-dialog")
    await expect(dialog).to_be_visible()
    await page.fill("#key", key)
    await page.keyboard.press("Enter")
    await expect(page.locator("#runs-note")).to_have_text("No runs yet.")
    await page.goto(url)
    await improve(page)
    await page.reload()
    await expect(page.locator(".compare")).to_be_visible()
    stored = await page.evaluate("[JSON.stringify(localStorage), document.cookie]")
    assert key not in "".join(stored) and key not in page.url
    await page.locator("#code summary").click()
    await expect(page.locator("#curl")).to_contain_text('authorization: Bearer $PIT_API_KEY"')
    assert key not in await page.locator("#code").inner_text()
    await page.click("#key-open")
    await page.click("#key-forget")
    await expect(dialog).to_be_hidden()
    await write(page)
    await page.click("#run")
    await expect(dialog).to_be_visible()
    await expect(page.locator("#key-why")).to_contain_text("This server asks for an API key. Stays")


async def test_a_limit_says_when_to_try_again(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story(), requests_per_minute=1), refused=(429,))).open()
    await improve(page)
    await page.click("#run")
    await expect(page.locator("#run-title")).to_have_text("This run failed")
    await expect(page.locator(".summary")).to_contain_text(re.compile(r"Try again in \d+ s\."))
    await expect(page.locator("#run")).to_be_enabled()


async def test_a_refused_request_is_said_in_words(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()), refused=(400,))).open()
    await page.locator("#options summary").click()
    await page.fill("#quotes", "not in the draft")
    await write(page)
    await page.click("#run")
    await expect(page.locator(".summary")).to_contain_text("keep.quotes")


async def test_a_server_without_a_database(start: Start, visit: Open) -> None:
    """Runs are improved, and have no address; there is nothing to say about them, and no list."""
    seen = await visit(await start(story(), database="none"), refused=(404,))
    page = await seen.open()
    await improve(page)
    assert page.url == f"{seen.url}/"
    assert await page.get_by_role("button", name="Save as feedback").count() == 0
    await page.click("nav >> text=Runs")
    await expect(page.locator("#runs-note")).to_contain_text("This server keeps no runs")


async def test_a_run_that_is_to_leave_no_record(start: Start, visit: Open) -> None:
    seen = await visit(await start(story()))
    page = await seen.open()
    await page.locator("#options summary").click()
    await page.check("#unkept")
    await improve(page)
    assert page.url == f"{seen.url}/"
    await page.click("nav >> text=Runs")
    await expect(page.locator("#runs-note")).to_have_text("No runs yet.")
