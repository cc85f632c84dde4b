"""The page in a browser, with vLLM behind it."""

import re

import httpx
import pytest
from playwright.async_api import Browser, expect

from tests.browser.conftest import browser, watched

__all__ = ["browser"]


@pytest.mark.engine
async def test_a_run_on_the_page(browser: Browser, url: str) -> None:
    """Drafted by the engine, improved, scored, shown as it is stored; and judged. The models are random: what
    they write is anything, and says the same every time."""
    async with watched(browser, url) as seen:
        page = await seen.open()
        await expect(page.locator("#run")).to_be_enabled()
        await page.fill("#prompt", "What is the price of the lamp?")
        await page.locator("#options summary").click()
        for name, value in (("candidates", "2"), ("patience", "3"), ("max_tokens", "24"), ("seed", "11")):
            await page.fill(f"#{name}", value)
        await page.fill("#min_win_probability", "0.05")
        await page.keyboard.press("Control+Enter")
        await expect(page.locator(".card .stream").first).to_have_text(re.compile(r"\S"))
        await expect(page.locator(".compare")).to_be_visible()
        await expect(page.locator(".wins")).to_have_text([re.compile(r"^\d+% likely better$")] * 3)
        run = page.url.rsplit("/", 1)[1]
        async with httpx.AsyncClient(base_url=url) as client:
            result = (await client.get(f"/v1/improve/{run}")).json()["result"]
        shown = [await chip.inner_text() for chip in await page.locator(".card .chip").all()]
        verdicts = ["Accepted" if iteration["accepted"] else "Rejected" for iteration in result["iterations"]]
        assert shown == ["Draft", *verdicts]
        await page.get_by_role("button", name="Edit text").click()
        await expect(page.get_by_label("The result")).to_have_value(result["response"])
        await expect(page.locator(".chart rect.tokens")).to_have_count(4)
        if result["improved"]:
            await page.get_by_role("button", name="Judge blind").click()
            await page.get_by_role("button", name="A is better").click()
            await expect(page.locator(".blind [role=status]")).to_have_text("Saved as feedback.")
