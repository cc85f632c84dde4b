"""How far judges agree beyond chance: percent, Cohen's and Fleiss' kappa.

Verdicts are +1, 0 and −1: three categories. 0 is chance, 1 is full agreement; both kappas are None where all
verdicts are the same, as chance alone would give that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TwoJudges:
    """Two judges on the `n` contests that both gave a verdict for; `percent` of them are the same."""

    n: int
    percent: float
    kappa: float | None


def two_judges(first: Sequence[int | None], second: Sequence[int | None]) -> TwoJudges | None:
    """Percent and Cohen's kappa (Cohen 1960); shapes (n,), the same contests. None without a common one."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return None
    n = len(both)
    observed = sum(a == b for a, b in both) / n
    ones, others = Counter(a for a, _ in both), Counter(b for _, b in both)
    return TwoJudges(n, 100 * observed, _kappa(observed, sum(ones[v] * others[v] for v in ones) / n**2))


def fleiss_kappa(verdicts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa (Fleiss 1971) over contests; each entry holds the verdicts that one contest was given.

    Contests with fewer than two are left out. Where their number differs between contests, each contest's
    agreement is over its own pairs of verdicts and counts alike.
    """
    judged = [Counter(each) for each in verdicts if len(each) > 1]
    if not judged:
        return None
    observed = sum(
        sum(count * (count - 1) for count in each.values()) / (each.total() * (each.total() - 1))
        for each in judged
    ) / len(judged)
    total: Counter[int] = sum(judged, Counter())
    return _kappa(observed, sum((count / total.total()) ** 2 for count in total.values()))


def _kappa(observed: float, expected: float) -> float | None:
    return None if expected == 1 else (observed - expected) / (1 - expected)
