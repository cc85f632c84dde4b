"""The page on which people judge, in a real browser: keys, names, texts that are markup."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_judge_people import Page, write_answers
from training.judges.people import read_verdicts

DEADLINE_MS = 60_000
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> &amp; \u202e"


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium: none is fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # Root, as in a container, gets no sandbox; the page is our own.
        found = started.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield found
        found.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Page]:
    found = Page(write_answers(tmp_path / "a.jsonl", 4, PIT=MARKUP, Original="plain"), tmp_path / "out")
    yield found
    found.stop()


def test_people_judge_with_keys_in_a_browser(browser: Any, served: Page, tmp_path: Path) -> None:
    page = browser.new_page()
    page.set_default_timeout(DEADLINE_MS)
    trouble: list[str] = []
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    url = str(served.http.base_url).rstrip("/")
    page.on("request", lambda r: None if r.url.startswith(url) else trouble.append(r.url))
    page.goto(url)

    def press(key: str, done: int) -> None:
        page.keyboard.press(key)
        shows = "text => document.getElementById('count').textContent === text"
        page.wait_for_function(shows, arg=f"{done} of 4")

    # A name that the server refuses takes no key away from the next try ("stu" are keys of the page).
    page.evaluate("document.getElementById('enter').noValidate = true")
    page.fill("#name", "<b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:not([hidden])")
    page.fill("#name", "")
    page.type("#name", "Justus")
    assert page.input_value("#name") == "Justus"
    page.keyboard.press("Enter")
    page.wait_for_selector("#contest:not([hidden])")
    sides: set[str] = set()

    def markup_is_text() -> None:
        left, right = page.inner_text("#left"), page.inner_text("#right")
        assert {left[:5], right[:5]} == {MARKUP[:5], "plain"}
        assert page.query_selector("#contest img") is None and page.query_selector("#contest script") is None
        sides.add(left[:5])

    left_is_markup = page.inner_text("#left").startswith("<img")
    for key, done in (("ArrowLeft", 1), ("t", 2), ("u", 1), ("s", 2)):
        markup_is_text()
        press(key, done)
    markup_is_text()
    page.focus("#left")
    page.keyboard.press("ArrowDown")  # scrolls, and judges nothing
    press("ArrowRight", 3)
    markup_is_text()
    assert sides == {MARKUP[:5], "plain"}  # it stood on both sides
    page.click("button[data-choice=tie]")
    page.wait_for_selector("#end:not([hidden])")
    page.reload()
    page.wait_for_selector("#end:not([hidden])")
    said = read_verdicts(tmp_path / "out")["Justus"]
    # "<img…" is sorted before "plain…": it is the first text.
    assert said[0].value == (1 if left_is_markup else -1)
    assert (said[1].value, said[3].value) == (None, 0) and said[2].value in (1, -1)
    assert trouble == []
