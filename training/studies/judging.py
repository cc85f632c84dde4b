"""The one place where studies ask a judge: texts of the same examples in, a score each out.

Today the gold scorer of the help desk; another judge goes in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from training.data import PreferencePair
from training.helpdesk import PERFECT, gold_score

JUDGE = "gold"
UNIT = "gold points"
HIGHEST = PERFECT
"""No score is above it: where a baseline has it, nothing can win."""


def scores(pairs: Sequence[PreferencePair], texts: Sequence[str]) -> list[float]:
    """The judge's score of each text as an answer to its example's prompt; shapes (n,) and (n,)."""
    return [_score(pair.prompt[-1]["content"], text) for pair, text in zip(pairs, texts, strict=True)]


@lru_cache(maxsize=200_000)
def _score(prompt: str, text: str) -> float:
    return gold_score(prompt, text)
