"""A run on the page: written token by token, judged, compared, stopped, found again."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from playwright.async_api import expect

from app.engines.base import Message
from tests.app.fakes import FakeEngine
from tests.browser.conftest import Open, Start
from tests.browser.story import BEST, BETTER, DRAFT, PROMPT, WORSE, improve, story, write


async def test_iterations_arrive_word_by_word(start: Start, visit: Open) -> None:
    """What is written shows before it is finished: the text of the card grows, and is never there at once."""
    page = await (await visit(await start(story(delay_s=0.1)))).open()
    await write(page)
    await page.click("#run")
    stream = page.locator(".stream").first
    await expect(stream).to_have_text(re.compile(r"^It has"))
    half = await stream.text_content()
    assert half and BETTER.startswith(half) and half != BETTER, half
    await expect(page.locator(".card").first.locator(".chip")).to_have_text("Accepted")


async def test_a_run_is_shown_with_its_verdicts_and_its_chart(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open()
    await improve(page)
    cards = page.locator(".card")
    await expect(cards).to_have_count(3)
    for number, (chip, wins) in enumerate((("Accepted", "86%"), ("Accepted", "73%"), ("Rejected", "40%"))):
        await expect(cards.nth(number).locator(".chip")).to_have_text(chip)
        await expect(cards.nth(number).locator(".wins")).to_have_text(f"{wins} likely better")
    await expect(cards.nth(0).locator("del").first).to_have_text("cat")
    await expect(page.locator("#run-title")).to_have_text("Improved")
    await expect(page.locator(".summary")).to_contain_text("2 of 3 iterations accepted")
    assert await page.locator(".chart circle.accepted").count() == 2
    assert await page.locator(".chart circle.rejected").count() == 1
    assert await page.locator(".chart rect.tokens").count() == 3
    label = await page.locator(".chart").get_attribute("aria-label")
    assert label and "3: 40%, rejected, 10 tokens" in label


async def test_the_policy_drafts_where_there_is_no_draft(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open()
    await improve(page, draft="")
    first = page.locator(".card").first
    await expect(first.locator("h3")).to_have_text("Draft")
    await expect(first.locator(".text")).to_have_text(DRAFT)
    await expect(page.locator(".chart rect.tokens")).to_have_count(4)


async def test_a_run_has_an_address_of_its_own(start: Start, visit: Open) -> None:
    """It is there again after a reload, and for whoever gets the link; the form too."""
    url = await start(story())
    page = await (await visit(url)).open()
    await page.locator("#options summary").click()
    await page.fill("#patience", "2")
    await page.fill("#quotes", "24 euros")
    await improve(page)
    assert re.fullmatch(rf"{url}/runs/imp_[0-9a-f]{{32}}", page.url)
    other = (await visit(url)).page
    for shown in (page, other):
        await shown.goto(page.url)
        await expect(shown.locator(".compare")).to_be_visible()
        await expect(shown.locator(".card")).to_have_count(3)
        await expect(shown.locator("#prompt")).to_have_value(PROMPT)
        await expect(shown.locator("#draft")).to_have_value(DRAFT)
        await expect(shown.locator("#patience")).to_have_value("2")
        await expect(shown.locator("#quotes")).to_have_value("24 euros")
        await expect(shown.locator("#run")).to_be_enabled()


async def test_candidates_side_by_side_and_what_they_must_keep(start: Start, visit: Open) -> None:
    """The chosen one is shown; the others, and why one was not even scored, are under a fold."""
    page = await (await visit(await start(story(texts=(BETTER, "Nothing at all."))))).open()
    await page.locator("#options summary").click()
    await page.fill("#candidates", "2")
    await page.fill("#max_iterations", "1")
    await page.fill("#quotes", "24 euros")
    await improve(page)
    card = page.locator(".card").first
    await expect(card.locator(".chip")).to_have_text("Accepted")
    await card.locator("summary").click()
    await expect(card.locator("details")).to_contain_text("Nothing at all.")
    await expect(card.locator("details")).to_contain_text("24 euros")


@pytest.mark.parametrize("by", ["Escape", "button"])
async def test_stop_ends_a_run_with_its_best_so_far(start: Start, visit: Open, by: str) -> None:
    """An iteration has passed, the second is being written, and would be for a minute more."""
    models, turn = story(), iter((BETTER, "on " * 60))
    improver = models.improver
    assert isinstance(improver, FakeEngine)

    def script(_: Sequence[Message]) -> str:
        text = next(turn)
        improver.delay_s = 0.0 if text == BETTER else 1.0
        return text

    improver.script = script
    page = await (await visit(await start(models))).open()
    await write(page)
    await page.keyboard.press("Control+Enter")
    await expect(page.locator(".card").nth(1).locator(".stream")).to_contain_text("on")
    await (page.keyboard.press("Escape") if by == "Escape" else page.click("#stop"))
    await expect(page.locator(".summary")).to_contain_text("Stopped by you.")
    await expect(page.locator("#run-title")).to_have_text("Improved")
    await expect(page.locator("#stop")).to_be_hidden()
    assert improver.running == 0


async def test_a_result_becomes_the_next_draft(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open()
    await improve(page)
    await page.get_by_role("button", name="Improve further").click()
    await expect(page.locator("#draft")).to_have_value(BEST)


async def test_where_nothing_passes_the_draft_stays(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story(texts=(WORSE,))))).open()
    await improve(page, draft=BEST)
    await expect(page.locator("#run-title")).to_have_text("Kept as it was: nothing scored better")
    assert await page.get_by_role("button", name="Judge blind").count() == 0, "there is nothing to compare"


async def test_without_a_gap_reward_the_page_says_that_there_is_no_gate(start: Start, visit: Open) -> None:
    page = await (await visit(await start(replace(story(), scorer=None)))).open()
    await improve(page)
    await expect(page.locator(".run > .notice")).to_contain_text("Without a gate")
    await expect(page.locator(".wins")).to_have_text("not scored")
    assert await page.locator(".chart circle").count() == 0


async def test_a_prompt_is_never_read_as_html(start: Start, visit: Open) -> None:
    """Of the reader, of the model, and of a stored run."""
    bad = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page = await (await visit(await start(story(texts=(f"{BETTER} {bad}", BEST))))).open()
    await improve(page, prompt=bad, draft=f"{DRAFT} {bad}")
    await expect(page.locator(".cards")).to_contain_text("<script>alert(2)</script>")
    await page.reload()
    await expect(page.locator(".compare")).to_contain_text("onerror=alert(1)")
    await page.goto(page.url.split("/runs/")[0] + "/runs")
    await expect(page.locator(".prompt")).to_have_text(bad)
    assert await page.locator("main img, main script").count() == 0


