"""The edit view: what changed between two texts, word by word, so that a person can take a part of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

WORDS = re.compile(r"\S+|\s+")
"""Words and the white space between them: together every character of a text."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """`before`, which is `old[start:end]`, becomes `after`. Positions count Unicode code points."""

    op: Literal["replace", "insert", "delete"]
    start: int
    end: int
    before: str
    after: str


def hunks(old: str, new: str) -> tuple[Hunk, ...]:
    """What makes `new` out of `old`, from left to right; two hunks never touch or overlap."""
    before, after = WORDS.findall(old), WORDS.findall(new)
    # White space alone does not align two texts. In a long text, nor do its most frequent words (difflib's
    # "autojunk"): without that, a text of one word repeated costs the square of its length.
    matcher = SequenceMatcher(str.isspace, before, after)
    starts = [0]
    for word in before:
        starts.append(starts[-1] + len(word))
    found = []
    for op, a, b, c, d in matcher.get_opcodes():
        if op != "equal":
            found.append(Hunk(op, starts[a], starts[b], "".join(before[a:b]), "".join(after[c:d])))
    return tuple(found)


def apply(old: str, chosen: Iterable[Hunk]) -> str:
    """`old` with some of its hunks, in any order: all of them give the new text.

    Raises `ValueError` for a hunk of another text, or for hunks that overlap.
    """
    pieces, position = [], 0
    for hunk in sorted(chosen, key=lambda hunk: (hunk.start, hunk.end)):
        if hunk.start < position or old[hunk.start : hunk.end] != hunk.before:
            raise ValueError(f"the hunk at [{hunk.start}, {hunk.end}) does not fit this text")
        pieces += [old[position : hunk.start], hunk.after]
        position = hunk.end
    return "".join([*pieces, old[position:]])
