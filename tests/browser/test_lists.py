"""The pages of runs and of batches."""

import json
import re

import httpx
from playwright.async_api import expect

from tests.app.fakes import FakeEngine
from tests.browser.conftest import Open, Start
from tests.browser.story import BETTER, DRAFT, story, upload


def line(number: int, **body: object) -> str:
    sent = {"messages": [{"role": "user", "content": "What about the price?"}], "reference": DRAFT} | body
    return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/improve", "body": sent})


async def test_runs_are_listed_and_opened(start: Start, visit: Open) -> None:
    """The newest first, by what was asked and what came of it, a page at a time with one request each."""
    url = await start(story())
    async with httpx.AsyncClient(base_url=url) as client:
        for number in range(22):
            body = {"messages": [{"role": "user", "content": f"Question {number}"}], "reference": DRAFT}
            assert (await client.post("/v1/improve", json=body | {"max_iterations": 1})).status_code == 200
    seen = await visit(url)
    asked: list[str] = []
    seen.page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
    page = await seen.open("/runs")
    prompts = page.locator(".prompt")
    await expect(prompts).to_have_count(20)
    await expect(prompts.first).to_have_text("Question 21")
    # The texts of `story` in turn: of run 0 the first, so of run 21 too.
    await expect(page.locator(".runs .hint").first).to_have_text("improved, 86% · 1 iteration")
    await page.click("#more")
    await expect(prompts).to_have_count(22)
    await expect(prompts.last).to_have_text("Question 0")
    await expect(page.locator("#more")).to_be_hidden()
    lists = [path.partition("&")[0] for path in asked if path.startswith("/v1/")]
    assert lists == ["/v1/improve?limit=20"] * 2
    await prompts.last.click()
    await expect(page.locator("#prompt")).to_have_value("Question 0")
    await expect(page.locator(".card")).to_have_count(1)


async def test_a_batch_from_its_file_to_its_results(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story(texts=(BETTER,))))).open("/batches")
    lines = "\n".join([line(1), line(2), line(3, max_iterations=0)])
    await upload(page, lines)
    batch = page.locator(".batches .card")
    await expect(batch.locator("h2")).to_have_text("ask.jsonl")
    await expect(batch.locator(".chip")).to_have_text("completed")
    await expect(batch).to_contain_text("2 of 3 requests done, 1 failed")
    assert await batch.locator("progress").evaluate("(bar) => bar.value") == 1
    for label, ids in (("Download results", ["1", "2"]), ("Download errors", ["3"])):
        async with page.expect_download() as coming:
            await page.get_by_role("button", name=label).click()
        path = await (await coming.value).path()
        assert [json.loads(row)["custom_id"] for row in path.read_text().splitlines()] == ids
    await page.reload()
    await expect(batch).to_have_count(1)


async def test_a_batch_grows_and_is_cancelled(start: Start, visit: Open) -> None:
    models = story(texts=(BETTER,))
    assert isinstance(models.improver, FakeEngine)
    models.improver.delay_s = 0.1
    page = await (await visit(await start(models, batch_concurrency=1))).open("/batches")
    lines = "\n".join(line(number, max_iterations=1) for number in range(1000))
    await upload(page, lines)
    batch = page.locator(".batches .card")
    await expect(batch.locator(".chip")).to_have_text("in progress")
    await expect(batch).to_contain_text(re.compile(r"[1-9]\d* of 1,000 requests done"))
    assert 0 < await batch.locator("progress").evaluate("(bar) => bar.value") < 1
    await page.get_by_role("button", name="Cancel").click()
    await expect(batch.locator(".chip")).to_have_text("cancelled")
    await expect(page.get_by_role("button", name="Download errors")).to_be_visible()


async def test_a_file_that_is_refused_says_why(start: Start, visit: Open) -> None:
    page = await (await visit(await start(story()))).open("/batches")
    await upload(page, "no json")
    batch = page.locator(".batches .card")
    await expect(batch.locator(".chip")).to_have_text("failed")
    await expect(batch).to_contain_text("line 1: ")
