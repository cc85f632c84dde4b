"""Statistics of verdicts: win, lose and Δ, means, and their bootstrap intervals.

A judge gives each response a number or each contest a verdict; two systems are compared example by example.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError


@dataclass(frozen=True)
class WinRate:
    """How often one system beats another on the same `n` examples, in percent; ties are the rest.

    `delta = win − lose`; `low` and `high` bound its bootstrap interval.
    """

    n: int
    win: float
    lose: float
    delta: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"[{self.low:+.1f}, {self.high:+.1f}]"
        return f"win {self.win:.1f} / lose {self.lose:.1f} / Δ {self.delta:+.1f} {interval}, n = {self.n}"


@dataclass(frozen=True)
class Mean:
    """A mean with its bootstrap interval, in the unit of the values."""

    n: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def paired_bootstrap(
    wins: int, losses: int, n: int, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> WinRate:
    """Win, lose and Δ in percent from counts, with a percentile bootstrap interval of Δ over the examples.

    An example's verdict is +1, 0 or −1, so drawing `n` examples again is drawing their counts from a
    multinomial distribution. Verdicts that all agree give an interval of width 0: read it with `n`.

    Raises `DataError` for counts that cannot be.
    """
    if n < 1 or wins < 0 or losses < 0 or wins + losses > n:
        raise DataError(f"{wins} wins and {losses} losses in {n} comparisons: nothing to compute")
    shares = [wins / n, losses / n, (n - wins - losses) / n]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile(100 * (draws[:, 0] - draws[:, 1]) / n, _tails(level))
    return WinRate(n, 100 * wins / n, 100 * losses / n, 100 * (wins - losses) / n, float(low), float(high))


def compare(
    scores: Sequence[float], baseline_scores: Sequence[float], tolerance: float = 0.0, seed: int = 0
) -> WinRate:
    """Example by example, does the system score higher than the baseline? Within `tolerance` it is a tie.

    Shapes: both (n,), the same examples in the same order. For distances pass them negated.
    """
    if len(scores) != len(baseline_scores):
        raise DataError(f"{len(scores)} scores against {len(baseline_scores)}: not the same examples")
    differences = np.asarray(scores, dtype=float) - np.asarray(baseline_scores, dtype=float)
    if not np.isfinite(differences).all():
        raise DataError("a score is not a finite number")
    wins, losses = int((differences > tolerance).sum()), int((differences < -tolerance).sum())
    return paired_bootstrap(wins, losses, len(scores), seed)


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Mean:
    """Mean with its percentile bootstrap interval; to compare two systems pass the paired differences."""
    if len(values) < 1:
        raise DataError("the mean of no values")
    array = np.asarray(values, dtype=float)
    means = _resampled_means(array, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, _tails(level))
    return Mean(len(array), float(array.mean()), float(low), float(high))


def _resampled_means(
    values: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Shape (resamples,). Drawn in blocks, so that 10,000 resamples of a long list do not need gigabytes."""
    means = np.empty(resamples)
    block = max(1, 2_000_000 // len(values))
    for start in range(0, resamples, block):
        rows = means[start : start + block]
        rows[:] = values[generator.integers(len(values), size=(len(rows), len(values)))].mean(axis=1)
    return means


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
