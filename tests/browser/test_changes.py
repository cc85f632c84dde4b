"""What a reader does with a result: takes it change by change, mends it, judges it; and what is kept of
that."""

import json
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import Open, Start, static
from tests.browser.story import BEST, BETTER, DRAFT, WORSE, improve, story, write

PICKED = "It has price 24 euros and my cat sleeps all day."
"""The draft with the last change alone."""


async def pairs(url: str) -> list[dict[str, Any]]:
    """The preference pairs that the server has, as training gets them: text of chosen, text of rejected."""
    async with httpx.AsyncClient(base_url=url) as client:
        lines = (await client.get("/v1/feedback/export")).text.splitlines()
    return [json.loads(line) for line in lines]


async def texts(url: str) -> list[tuple[str, str]]:
    return [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in await pairs(url)]


async def clipboard(page: Page) -> str:
    return str(await page.evaluate("navigator.clipboard.readText()"))


async def test_single_changes_are_undone_copied_and_kept(start: Start, visit: Open) -> None:
    """By mouse and by keyboard; what is copied, and becomes a preference, is the text with these changes."""
    url = await start(story())
    page = await (await visit(url, permissions=["clipboard-read", "clipboard-write"])).open()
    await improve(page)
    changes = page.locator(".compare .choice")
    await expect(changes).to_have_count(3)
    await changes.nth(0).click()
    await changes.nth(1).focus()
    await page.keyboard.press("Space")
    await expect(changes.nth(1)).to_have_attribute("aria-pressed", "false")
    await expect(page.locator(".tally")).to_contain_text("1 of 3 changes taken")
    await page.get_by_role("button", name="Copy text").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await clipboard(page) == PICKED
    await page.get_by_role("button", name="Save as feedback").click()
    await expect(page.locator(".compare > [role=status]")).to_have_text(
        "Saved: 2 preference pairs for the next training."
    )
    assert set(await texts(url)) == {(PICKED, DRAFT), (PICKED, BEST)}
    assert {pair["source"] for pair in await pairs(url)} == {"feedback/edits"}
    await page.get_by_role("button", name="Undo all").click()
    await page.get_by_role("button", name="Copy text").click()
    await expect(page.locator(".tally")).to_contain_text("0 of 3 changes taken")
    assert await clipboard(page) == DRAFT


async def test_a_text_is_mended_by_hand(start: Start, visit: Open) -> None:
    url = await start(story())
    page = await (await visit(url)).open()
    await improve(page)
    await page.get_by_role("button", name="Edit text").click()
    await expect(page.get_by_label("The result")).to_have_value(BEST)
    await page.get_by_label("The result").fill("My own words.")
    await page.get_by_role("button", name="Save as feedback").click()
    await expect(page.locator(".compare > [role=status]")).to_contain_text("Saved: 1 preference pair ")
    assert await texts(url) == [("My own words.", BEST)]


async def test_any_text_beside_any_earlier_one(start: Start, visit: Open) -> None:
    """The second iteration's own edits, and the rejected third against the draft, which no edits of the API
    are of."""
    url = await start(story())
    page = await (await visit(url)).open()
    await improve(page)
    await page.get_by_label("To", exact=True).select_option(label="Iteration 2, accepted")
    await page.get_by_label("From", exact=True).select_option(label="Iteration 1, accepted")
    inserted = page.locator(".compare ins")
    await expect(inserted.first).to_have_text("origin Oslo and ")
    await page.locator(".compare .choice").last.click()
    await page.get_by_role("button", name="Save as feedback").click()
    await expect(page.locator(".compare > [role=status]")).to_contain_text("Saved: 2 preference pairs ")
    (chosen,) = {chosen for chosen, _ in await texts(url)}
    assert {rejected for _, rejected in await texts(url)} == {BETTER, BEST}
    assert chosen not in (BETTER, BEST)
    await page.get_by_label("To", exact=True).select_option(label="Iteration 3, rejected")
    await page.get_by_label("From", exact=True).select_option(label="Draft")
    await page.get_by_role("button", name="Save as feedback").click()
    await expect(page.locator(".compare > [role=status]")).to_contain_text("Saved: 1 preference pair ")
    assert (WORSE, DRAFT) in await texts(url)
    later = page.get_by_label("From", exact=True).locator("option", has_text="Iteration 2")
    await page.get_by_label("To", exact=True).select_option(label="Iteration 1, accepted")
    await expect(later).to_be_disabled()


@pytest.mark.parametrize("better", [BEST, DRAFT])
async def test_a_blind_comparison_hides_which_is_which(start: Start, visit: Open, better: str) -> None:
    """Nothing of the texts is seen before the reader has chosen; what is chosen is kept, whatever its
    side."""
    url = await start(story())
    page = await (await visit(url)).open()
    await write(page)
    await page.locator("#options summary").click()
    await page.check("#blind")
    await page.click("#run")
    sides = page.locator(".side")
    await expect(sides).to_have_count(2)
    assert set(await sides.locator(".text").all_inner_texts()) == {DRAFT, BEST}
    assert await sides.locator("h3").all_inner_texts() == ["A", "B"]
    await expect(page.locator(".cards")).to_be_hidden()
    assert await page.locator(".compare").count() == 0
    left = await sides.first.locator(".text").inner_text() == better
    await page.get_by_role("button", name=f"{'A' if left else 'B'} is better").click()
    await expect(page.locator(".blind [role=status]")).to_have_text("Saved as feedback.")
    names = {DRAFT: "Draft", BEST: "Response"}
    for side in await sides.all():
        text = await side.locator(".text").inner_text()
        await expect(side.locator("h3")).to_contain_text(names[text])
    await expect(page.locator(".compare")).to_be_visible()
    await expect(page.locator(".cards")).to_be_visible()
    (pair,) = await texts(url)
    assert pair == (better, BEST if better == DRAFT else DRAFT)


async def test_the_sides_are_drawn(start: Start, visit: Open) -> None:
    """A run that was seen already is judged without its texts beside it; not always on the same side."""
    url = await start(story())
    page = await (await visit(url)).open()
    await improve(page)
    await page.get_by_role("button", name="Judge blind").click()
    await expect(page.locator(".side")).to_have_count(2)
    await expect(page.locator(".cards")).to_be_hidden()
    await expect(page.locator(".compare")).to_be_hidden()
    await page.get_by_role("button", name="I cannot tell").click()
    await expect(page.locator(".cards")).to_be_visible()
    assert await texts(url) == []
    lefts = await page.evaluate(
        """async (module) => {
          const { blind } = await import(module);
          const pair = [{ which: "reference", text: "old" }, { which: "response", text: "new" }];
          return Array.from({ length: 40 }, () => blind("", pair).querySelector(".text").textContent);
        }""",
        static("blind.js"),
    )
    assert set(lefts) == {"old", "new"}, "all alike by chance: once in 500 thousand million"
