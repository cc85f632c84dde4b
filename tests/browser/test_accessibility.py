"""axe-core finds no fault in any view, in both themes, at the width of a desk and of a phone; and keys alone
are enough."""

from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.async_api import Page, ViewportSize, expect

from tests.browser.conftest import Open, Start
from tests.browser.story import improve, story, upload, write

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SIZES: dict[str, ViewportSize] = {
    "desk": {"width": 1280, "height": 900},
    "phone": {"width": 390, "height": 844},
}
THEMES: dict[Any, dict[str, Any]] = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
"""The rules for each: colours are all that a theme changes."""
SHOTS = Path("runs/browser")


async def check(page: Page, name: str, *, shot: bool = False) -> list[str]:
    """What is wrong with what is shown now, in any theme and width; `shot`: leave pictures of it in
    runs/browser."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE)
    faults = []
    for size, viewport in SIZES.items():
        await page.set_viewport_size(viewport)
        for theme, rules in THEMES.items():
            await page.emulate_media(color_scheme=theme)
            if shot:
                await page.screenshot(path=SHOTS / f"{name}-{size}-{theme}.png", full_page=True)
            found: dict[str, Any] = await page.evaluate("(rules) => axe.run(rules)", rules)
            faults += [
                f"{name}, {size}, {theme}: {fault['id']} ({fault['impact']}): {node['html'][:200]}"
                for fault in found["violations"]
                for node in fault["nodes"]
            ]
        width, room = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if width > room:
            faults.append(f"{name}, {size}: {width} px wide in {room}")
    return faults


async def test_no_view_has_a_fault(start: Start, visit: Open) -> None:
    url = await start(story())
    page = await (await visit(url, reduced_motion="reduce")).open()
    await expect(page.locator("#run")).to_be_enabled()
    faults = await check(page, "empty")
    await improve(page)
    faults += await check(page, "improved", shot=True)
    await page.locator(".choice").first.click()
    await page.locator("#options summary").click()
    await page.locator("#code summary").click()
    faults += await check(page, "open")
    await page.get_by_role("button", name="Judge blind").click()
    faults += await check(page, "blind")
    await page.click("#key-open")
    faults += await check(page, "key")
    await page.goto(f"{url}/runs")
    await expect(page.locator(".prompt")).to_contain_text("What about")
    faults += await check(page, "runs")
    await page.goto(f"{url}/docs#improvement")
    await expect(page.locator("#health-text")).to_have_text("Ready")
    # Its entries repeat one form, and axe looks at every word for a second: a fifth of them is enough.
    await page.evaluate("document.querySelectorAll('.entry').forEach((each, i) => i % 5 && each.remove())")
    assert await page.locator(".entry").count() > 10
    faults += await check(page, "reference")
    await page.goto(f"{url}/batches")
    lines = '{"custom_id": "1", "method": "POST", "url": "/v1/improve", "body": {}}'
    await upload(page, lines)
    await expect(page.locator(".batches .chip")).to_have_text("completed")
    faults += await check(page, "batches")
    assert faults == []


async def test_keys_alone_are_enough(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open()
    await expect(page.locator("#run")).to_be_enabled()
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.locator("#prompt")).to_be_focused()
    await write(page)
    await page.locator("#draft").press("Control+Enter")
    await expect(page.locator(".compare")).to_be_visible()
    change = page.locator(".choice").first
    await page.get_by_role("button", name="Undo all").focus()
    await page.keyboard.press("Tab")
    await expect(change).to_be_focused()
    outline = await change.evaluate("(element) => getComputedStyle(element).outlineStyle")
    assert outline == "solid", "the focus is seen"
    await page.keyboard.press("Enter")
    await expect(page.locator(".tally")).to_contain_text("2 of 3 changes")
    await expect(page.locator(".run > [role=status]").first).to_have_text("Improved")
