"""What the page costs, and what its policy keeps out."""

import re

import httpx
from playwright.async_api import expect

from app.web.site import site
from tests.app.conftest import Serve, serve
from tests.browser.conftest import Open, Start, static
from tests.browser.story import improve, story

__all__ = ["serve"]
PAGES = ("/", "/runs", "/runs/imp_0", "/batches", "/docs")
MOST_BYTES, FIRST_SIGHT_MS = 150_000, 1000
SEEN = """() => new Promise((done) => new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (entry.name === "first-contentful-paint") done(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""
LOADED = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .map(({ name, transferSize, decodedBodySize }) => ({ name, transferSize, decodedBodySize }))"""


async def test_the_page_is_small_and_soon_there(start: Start, visit: Open) -> None:
    """To the end of a first run. The best of three: other programs run on this machine."""
    url = await start(story())
    times = []
    for _ in range(3):
        page = await (await visit(url)).open()
        times.append(await page.evaluate(SEEN))
    await improve(page)
    loaded = await page.evaluate(LOADED)
    files = [entry for entry in loaded if "/v1/" not in entry["name"]]
    assert len(files) > 10
    transferred, decoded = (sum(f[size] for f in files) for size in ("transferSize", "decodedBodySize"))
    print(f"first sight after {min(times):.0f} ms; {transferred:,} bytes transferred, {decoded:,} unpacked")
    assert transferred < decoded < MOST_BYTES
    assert min(times) <= FIRST_SIGHT_MS, times


async def test_every_page_has_a_strict_policy(serve: Serve) -> None:
    client = await serve()
    for path in (*PAGES, static("improve.js"), static("style.css")):
        answer = await client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = await client.head(path)
        assert (head.status_code, head.text) == (200, ""), path


async def test_nothing_inline_and_nothing_from_elsewhere(serve: Serve) -> None:
    """Of the templates: a script or a style has an address, and that is on this server."""
    client = await serve()
    for path in PAGES:
        html = (await client.get(path)).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
        addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
        assert all(re.match(r"/(?!/)|#", address) for address in addresses)
    for name, file in site().static.items():
        found = re.findall(rb"https?://[^\s\"')]+", file.body)
        assert set(found) <= {b"http://www.w3.org/2000/svg"}, name


async def test_the_browser_enforces_it(start: Start, visit: Open) -> None:
    seen = await visit(await start(story()))
    page = await seen.open()
    broken = await page.evaluate(
        """() => new Promise((done) => {
          const broken = [];
          addEventListener("securitypolicyviolation", (event) => {
            broken.push(event.effectiveDirective);
            if (broken.length === 3) done(broken.sort());
          });
          setTimeout(() => done(broken.sort()), 20_000);
          const style = document.createElement("style");
          document.head.append(Object.assign(style, { textContent: "p { color: red }" }));
          document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" }));
          try { document.body.innerHTML = "<b>"; } catch {}
        })"""
    )
    assert broken == ["img-src", "require-trusted-types-for", "style-src-elem"]
    assert len(seen.complaints) >= 3
    seen.complaints.clear()


async def test_the_reference_of_the_api_needs_nobody_else(start: Start, visit: Open) -> None:
    """Under the policy, with no request to elsewhere (`watched` sees to both): every route and object is
    there, and what names an object leads to it."""
    url = await start(story())
    page = await (await visit(url)).open()
    await page.get_by_role("link", name="API reference").click()
    await expect(page.locator("h1")).to_have_text("API reference")
    await expect(page.locator("#health-text")).to_have_text("Ready")
    async with httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/redoc")).status_code == 404
    named = await page.locator(".entry h3").all_text_contents()
    routes = [f"{m.upper()} {path}" for path, found in document["paths"].items() for m in found]
    assert named == routes + sorted(document["components"]["schemas"])
    post = page.locator("#post-v1-improve")
    await expect(post).to_contain_text("Improve a response.")
    await post.get_by_role("link", name="ImproveRequest").click()
    await expect(page.locator(":target h3")).to_have_text("ImproveRequest")
    await expect(page.locator(":target")).to_contain_text("max_iterations integer (≥ 1, ≤ 20) default 3")
    dead = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => !document.querySelector(a.hash))"
    assert await page.evaluate(f"{dead}.map((a) => a.hash)") == []


async def test_static_files_are_kept_for_good_under_their_digest(serve: Serve) -> None:
    client = await serve()
    name = static("improve.js")
    kept, packed = await client.get(name, headers={"accept-encoding": "identity"}), await client.get(name)
    assert "immutable" in kept.headers["cache-control"]
    assert packed.headers["content-encoding"] == "gzip" and packed.text == kept.text
    assert "content-encoding" not in kept.headers and kept.headers["vary"] == "accept-encoding"
    other = await client.get("/static/0123456789ab/improve.js")
    rolled_out = (other.status_code, other.headers["cache-control"])
    assert rolled_out == (200, "no-cache"), "half of the servers have the next version"
    for path in ("/static/x/nothing.js", "/static/x/..%2fsite.py", "/static/x/../site.py", "/static"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
    assert (await client.get("/")).headers["cache-control"] == "no-cache"


async def test_each_module_is_named_by_its_page(serve: Serve) -> None:
    """So that the browser fetches them at once, and not one after the other as it reads them."""
    client: httpx.AsyncClient = await serve()
    modules = {name for name in site().static if name.endswith(".js") and name != "theme.js"}
    found = set()
    for path in PAGES:
        html = (await client.get(path)).text
        found |= set(re.findall(r'modulepreload" href="/static/[0-9a-f]+/([^"]+)"', html))
    assert found == modules, "an import that is written in another way, or a module that nobody uses"


async def test_themes_follow_the_system_until_one_is_chosen(start: Start, visit: Open) -> None:
    seen = await visit(await start(story()), color_scheme="dark")
    page = await seen.open()
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark = await page.evaluate(background)
    await page.click("#theme-toggle")
    light = await page.evaluate(background)
    assert (dark, light) == ("rgb(19, 19, 24)", "rgb(247, 247, 249)")
    await page.reload()
    assert await page.evaluate(background) == light
    await expect(page.locator("#theme-toggle")).to_have_text("Dark")
