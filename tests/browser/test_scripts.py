"""The logic of the page's scripts: differences, streams, snippets."""

import asyncio
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from app.improve.edits import hunks
from tests.browser.conftest import Open, Start, static
from tests.browser.story import BEST, story, write

LETTERS = ["a", "b", "c", "red", "é", "𝒳", "👍🏽", " ", " ", "  ", "\n"]


@pytest.fixture
async def page(start: Start, visit: Open) -> Page:
    return await (await visit(await start(story()))).open()


async def call(page: Page, module: str, body: str, given: Any) -> Any:
    """What a JavaScript function of `m`, the module, and `given` returns."""
    source = f"async ([address, given]) => {{ const m = await import(address); return ({body})(given); }}"
    return await page.evaluate(source, [static(module), given])


def pairs_of_texts(count: int) -> list[tuple[str, str]]:
    source = random.Random(7)

    def text() -> str:
        return "".join(source.choice(LETTERS) for _ in range(source.randint(0, 14)))

    return [(text(), text()) for _ in range(count)] + [("", ""), ("a b", "a b"), ("", "a"), ("a", "")]


async def test_differences(page: Page) -> None:
    """All hunks give the new text, none the old one; they never touch, and words around a change stay out of
    it."""
    found = await call(
        page,
        "diff.js",
        """(pairs) => pairs.map(([old, fresh]) => {
          const found = m.hunks(old, fresh);
          const all = new Set(found.keys());
          return { found, fresh: m.apply(old, found, all), old: m.apply(old, found, new Set()) };
        })""",
        given := pairs_of_texts(2000),
    )
    assert [(f["old"], f["fresh"]) for f in found] == [tuple(pair) for pair in given]
    for result in found:
        hunks_found = result["found"]
        ends = [hunk["end"] for hunk in hunks_found]
        assert all(later["start"] > end for later, end in zip(hunks_found[1:], ends, strict=False))
    changed = await call(
        page,
        "diff.js",
        "([old, fresh]) => m.hunks(old, fresh).map(({ before, after }) => [before, after])",
        ["one two three four five six", "one 2 three four and five"],
    )
    assert changed == [["two", "2"], ["five six", "and five"]]


async def test_texts_that_have_nothing_in_common_cost_little(page: Page) -> None:
    source = random.Random(1)
    old, fresh = (" ".join(str(source.random()) for _ in range(5000)) for _ in range(2))
    found = await call(page, "diff.js", "([old, fresh]) => m.hunks(old, fresh).length", [old, fresh])
    assert found == 1, "given up: one change from the first word to the last"


async def test_the_edits_of_the_api_fit_the_strings_of_javascript(page: Page) -> None:
    """The API counts characters, JavaScript the halves of those beyond the first 65,536."""
    pairs = [pair for pair in pairs_of_texts(500) if any(ord(c) > 0xFFFF for c in pair[0])]
    edits = [
        [{"start": h.start, "end": h.end, "before": h.before, "after": h.after} for h in hunks(*pair)]
        for pair in pairs
    ]
    found = await call(
        page,
        "diff.js",
        """(given) => given.map(([old, edits]) => {
          const found = m.fromApi(old, edits);
          return m.apply(old, found, new Set(found.keys()));
        })""",
        [[old, mine] for (old, _), mine in zip(pairs, edits, strict=True)],
    )
    assert found == [new for _, new in pairs]


async def test_a_stream_is_read_wherever_it_is_cut(page: Page) -> None:
    """Bytes come in any pieces, also in the middle of a character; comments and an unfinished end are no
    events."""
    text = (
        ": ping\n\nid: 1\nevent: output.delta\ndata: {\"text\":\"ä👍\"}\n\n"
        "id: 2\r\ndata: two\r\ndata: lines\r\n\r\n: ping\n\ndata\n\ndata:[DONE]\n\nid: 9\ndata: cut"
    )
    data = list(text.encode())
    for size in (1, 2, 3, 7, 1000):
        found = await call(
            page,
            "sse.js",
            """async ([data, size]) => {
              const bytes = new Uint8Array(data);
              const body = new ReadableStream({ start(control) {
                for (let i = 0; i < bytes.length; i += size) control.enqueue(bytes.slice(i, i + size));
                control.close();
              } });
              const found = [];
              for await (const event of m.events(body)) found.push(event);
              return found;
            }""",
            [data, size],
        )
        assert [(event["id"], event["name"], event["data"]) for event in found] == [
            ("1", "output.delta", '{"text":"ä👍"}'),
            ("2", "message", "two\nlines"),
            ("", "message", ""),
            ("", "message", "[DONE]"),
        ]


async def test_the_snippets_do_what_the_page_does(page: Page) -> None:
    """Both are run, with a prompt that quotes, and send what the form holds."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here: apt-get install curl")
    await write(page, prompt="""It's "24" \\ $HOME `ls` 👍\nprice?""")
    await page.locator("#options summary").click()
    await page.fill("#seed", "5")
    await page.check("#quoted")
    await page.fill("#temperature", "0.5")
    await page.locator("#code summary").click()
    sent = await call(page, "form.js", "() => m.requestBody()", None)
    assert sent["seed"] == 5 and sent["keep"] == {"quoted": True} and sent["temperature"] == 0.5
    assert set(sent) == {"messages", "reference", "seed", "keep", "temperature"}, "no defaults"
    command, program = [await page.locator(f"#{name}").text_content() for name in ("curl", "python")]
    assert command and program
    assert "from app.client import Client" in program
    answers = []
    for arguments in (["bash", "-c", command], [sys.executable, "-c", program]):
        done = await run(arguments)
        answers.append(json.loads(done)["response"] if arguments[0] == "bash" else done.rstrip("\n"))
    assert answers[0] and answers[1], answers
    url = page.url.rstrip("/")
    async with httpx.AsyncClient(base_url=url) as client:
        stored = (await client.get("/v1/improve")).json()["data"]
        requests = [(await client.get(f"/v1/improve/{run['id']}")).json()["request"] for run in stored]
    assert len(requests) == 2 and requests[0] == requests[1]
    keep = {"keep": requests[0]["keep"] | sent["keep"]}
    assert requests[0] | sent | keep == requests[0], "the server has kept what the form says"


async def test_the_snippets_read_the_key_from_the_environment(start: Start, visit: Open) -> None:
    """They hold its variable, and never the key."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here: apt-get install curl")
    key = secrets.token_hex(32)
    page = await (await visit(await start(story(), api_keys=f"reader {key}"))).open()
    await page.click("#key-open")
    await page.fill("#key", key)
    await page.get_by_role("button", name="Use this key").click()
    await write(page)
    await page.locator("#code summary").click()
    command, program = [await page.locator(f"#{name}").text_content() for name in ("curl", "python")]
    assert command and program and key not in command + program
    for arguments in (["bash", "-c", command], [sys.executable, "-c", program]):
        assert BEST in await run(arguments, PIT_API_KEY=key)


async def run(arguments: list[str], **environment: str) -> str:
    """A program's output, while the server in this process answers it."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_copying_works_where_the_clipboard_is_closed(page: Page) -> None:
    """Over plain http from another machine there is no navigator.clipboard."""
    await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await page.locator("#code summary").click()
    await page.evaluate("addEventListener('copy', () => (window.copied = document.activeElement.value))")
    button = page.locator("[data-copies=curl]")
    await button.click()
    await expect(button).to_have_text("Copied")
    assert str(await page.evaluate("copied")).startswith("curl -s http")
