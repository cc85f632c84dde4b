"""A run on the page: written token by token, judged, compared, stopped, found again."""

import re
from dataclasses import replace

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Open, Start
from tests.browser.story import BEST, BETTER, DRAFT, PROMPT, WORSE, Held, improve, story, write


async def test_iterations_arrive_word_by_word(start: Start, visit: Open) -> None:
    """What is written shows before it is finished."""
    models = story(improver=Held)
    page = await (await visit(await start(models))).open()
    await write(page)
    await page.click("#run")
    first = page.locator(".card").first
    await expect(first.locator(".stream")).to_have_text("It has")
    await expect(first.locator(".chip")).to_have_text("Writing")
    await expect(page.locator("#run-title")).to_have_text("Writing iteration 1")
    models.improver.go.release()  # type: ignore[union-attr]
    await expect(first.locator(".chip")).to_have_text("Accepted")
    await expect(first.locator(".text")).to_contain_text("color red")


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
    """An iteration has passed, the second is half written, and would be for ever."""
    models = story(improver=Held)
    page = await (await visit(await start(models))).open()
    await write(page)
    await page.keyboard.press("Control+Enter")
    models.improver.go.release()  # type: ignore[union-attr]
    await expect(page.locator(".card").nth(1).locator(".stream")).to_have_text("It has")
    await (page.keyboard.press("Escape") if by == "Escape" else page.click("#stop"))
    await expect(page.locator(".summary")).to_contain_text("Stopped by you.")
    await expect(page.locator("#run-title")).to_have_text("Improved")
    await expect(page.locator("#stop")).to_be_hidden()
    await expect(page.locator(".card").nth(1).locator(".chip")).to_have_text("Cut short")
    await page.get_by_role("button", name="Edit text").click()
    await expect(page.get_by_label("The result")).to_have_value(BETTER)
    assert models.improver.running == 0  # type: ignore[union-attr]


async def test_a_result_becomes_the_next_draft(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open()
    await improve(page)
    await page.get_by_role("button", name="Improve further").click()
    await expect(page.locator("#draft")).to_have_value(BEST)


async def test_where_nothing_passes_the_draft_stays(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story(texts=(WORSE,))))).open()
    await improve(page, draft=BEST)
    await expect(page.locator("#run-title")).to_have_text("Kept as it was: nothing scored better")
    await expect(page.locator(".card")).not_to_contain_text("The same text again")
    await page.get_by_role("button", name="Edit text").click()
    await expect(page.get_by_label("The result")).to_have_value(BEST)
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




async def test_a_candidate_that_says_the_same_is_said_to(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story(texts=(DRAFT,))))).open()
    await improve(page)
    await expect(page.locator(".card .chip")).to_have_text("Rejected")
    await expect(page.locator(".card")).to_contain_text("The same text again")
