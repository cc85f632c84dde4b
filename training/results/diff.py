"""Word diffs of two texts, as HTML and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from html import escape
from typing import Literal

Piece = tuple[Literal["same", "gone", "new"], str]


def pieces(before: str, after: str) -> Iterator[Piece]:
    """Stretches of whole words: "same" and "gone" in order are `before`, "same" and "new" `after`."""
    old, new = (re.findall(r"\S+\s*", text.strip()) for text in (before, after))
    # The white space behind a word does not make it another word.
    bare_old, bare_new = ([word.strip() for word in words] for words in (old, new))
    for op, i, j, k, m in SequenceMatcher(None, bare_old, bare_new, autojunk=False).get_opcodes():
        if op == "equal":
            yield "same", "".join(new[k:m])
            continue
        if i < j:
            yield "gone", "".join(old[i:j])
        if k < m:
            yield "new", "".join(new[k:m])


def as_html(before: str, after: str) -> str:
    """<del> what went, <ins> what came."""
    tags = {"same": "{}", "gone": "<del>{}</del>", "new": "<ins>{}</ins>"}
    return " ".join(tags[kind].format(escape(text.strip())) for kind, text in pieces(before, after))


def as_markdown(before: str, after: str) -> str:
    """Struck out what went, bold what came."""
    marks = {"same": "", "gone": "~~", "new": "**"}
    return " ".join(
        f"{marks[kind]}{plain(text.strip())}{marks[kind]}" for kind, text in pieces(before, after)
    )


def plain(text: str) -> str:
    """Text with nothing in it that Markdown reads as a mark."""
    return re.sub(r"([\\`*_~\[\]<>|#])", r"\\\1", " ".join(text.split()))
