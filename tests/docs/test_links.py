"""No link of the documentation is dead: files are there, anchors too; addresses have the form of one."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import ROOT, anchors, links, pages, slug


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(path: Path) -> None:
    found = [(line, target, dead(path, target)) for line, target in links(path)]
    assert [f"line {line}: {target}: {why}" for line, target, why in found if why] == []


def dead(path: Path, target: str) -> str | None:
    """Why a link leads nowhere."""
    parts = urlsplit(target)
    if parts.scheme:
        return None if parts.scheme in ("https", "http") and "." in parts.netloc else "is no address"
    goal = (path.parent / parts.path).resolve() if parts.path else path
    if not goal.exists():
        return "there is no such file"
    if not goal.is_relative_to(ROOT):
        return "leaves the project"
    if parts.fragment and goal.suffix == ".md" and parts.fragment not in anchors(goal):
        return "the page has no such heading"
    return None


def test_what_is_dead_is_found() -> None:
    readme = ROOT / "README.md"
    assert dead(readme, "docs/nothing.md") and dead(readme, "docs/keys.md#nothing") and dead(readme, "https://x")
    assert dead(readme, "../x") and not dead(readme, "docs/keys.md#scopes") and not dead(readme, "#serve")
    assert slug("`kill -9` of an engine, and _more_ (2)") == "kill--9-of-an-engine-and-_more_-2"


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    named = {(index.parent / target.split("#")[0]).resolve() for _, target in links(index)}
    assert [str(p.relative_to(ROOT)) for p in pages() if p.parent == index.parent and p not in named] == [
        "docs/README.md"
    ]
