"""What an evaluation's answers are worth: win rates, iterations, tokens, and how far the gap reward can be
trusted.

Pure functions of records and scores; nothing here asks a server or prints.

- Δ is win% − lose% with a bootstrap interval over the examples (`training.judges.compare`).
- Length-controlled Δ: a least-squares line through (length difference in words, verdict), read at
  difference 0. The verdict is +1, 0 or −1. A system that wins by length alone has an intercept of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.judges import Mean, WinRate, bootstrap_mean, compare

Scores = Sequence[float]


@dataclass(frozen=True)
class Controlled:
    """Δ in percentage points at equal length, with its bootstrap interval."""

    delta: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One system against another on the same examples."""

    name: str
    rate: WinRate
    score: Mean
    baseline_score: Mean
    length_controlled: Controlled
    words: float
    baseline_words: float


def compare_systems(
    name: str, scores: Scores, baseline: Scores, texts: Sequence[str], baseline_texts: Sequence[str]
) -> Comparison:
    """Shapes: all (n,), the same examples in the same order."""
    words, baseline_words = ([float(len(text.split())) for text in each] for each in (texts, baseline_texts))
    differences = [a - b for a, b in zip(words, baseline_words, strict=True)]
    verdicts = [float((s > b) - (s < b)) for s, b in zip(scores, baseline, strict=True)]
    return Comparison(
        name,
        compare(scores, baseline),
        bootstrap_mean(scores),
        bootstrap_mean(baseline),
        length_controlled(verdicts, differences),
        float(np.mean(words)),
        float(np.mean(baseline_words)),
    )


def length_controlled(
    verdicts: Scores, differences: Scores, seed: int = 0, resamples: int = 2_000
) -> Controlled:
    """Intercept, in percent, of the least-squares line of verdict on length difference; both (n,).

    Where all differences are equal there is no line to fit, and the plain mean stands.
    """
    y, x = np.asarray(verdicts, dtype=float), np.asarray(differences, dtype=float)
    draws = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
    low, high = np.quantile(_intercepts(y[draws], x[draws]), [0.025, 0.975])
    return Controlled(float(_intercepts(y[None], x[None])[0]), float(low), float(high))


def _intercepts(y: Any, x: Any) -> Any:
    """Shape (rows, n) twice → (rows,), in percent."""
    mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
    variance = ((x - mean_x[:, None]) ** 2).mean(axis=1)
    covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(axis=1)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    return 100 * (mean_y - slope * mean_x)


@dataclass(frozen=True)
class Row:
    """One iteration of a loop over all examples; `gain` is the paired change of the score since the one
    before.

    `better` and `worse` are shares (percent) against the response that the loop began with. The last three
    are None where nothing was scored.
    """

    iteration: int
    score: Mean
    gain: Mean | None
    rate: WinRate | None
    better: float
    worse: float
    win_probability: float | None
    accepted: float
    first_rejected: float | None


def iteration_rows(
    scores: Sequence[Scores], records: Sequence[Mapping[str, Any]], *, gated: bool
) -> list[Row]:
    """`scores` has shape (iterations + 1, n): entry 0 is the response that the loop began with."""
    rows = []
    for i, now in enumerate(scores):
        done = [r["iterations"][i - 1] for r in records if i and len(r["iterations"]) >= i]
        probabilities = [one["win_probability"] for one in done if one["win_probability"] is not None]
        stopped = sum(_first_rejection(r) == i for r in records)
        rows.append(
            Row(
                iteration=i,
                score=bootstrap_mean(now),
                gain=bootstrap_mean([a - b for a, b in zip(now, scores[i - 1], strict=True)]) if i else None,
                rate=compare(now, scores[0]) if i else None,
                better=_percent(a > b for a, b in zip(now, scores[0], strict=True)),
                worse=_percent(a < b for a, b in zip(now, scores[0], strict=True)),
                win_probability=float(np.mean(probabilities)) if probabilities else None,
                accepted=_percent(one["accepted"] for one in done),
                first_rejected=100 * stopped / len(records) if gated and i else None,
            )
        )
    return rows


def _first_rejection(record: Mapping[str, Any]) -> int | None:
    return next((one["index"] for one in record["iterations"] if not one["accepted"]), None)


def _percent(flags: Any) -> float:
    values = [bool(flag) for flag in flags]
    return 100 * sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Agreement:
    """How often the gap reward prefers what the judge prefers (ties of the judge left out), and its
    calibration."""

    pairs: int
    ties: int
    accuracy: float
    ece: float


def agreement(probabilities: Scores, differences: Scores) -> Agreement | None:
    """P(candidate is better), and the judge's score of candidate − baseline; both (n,). None without an
    untied pair.

    A probability of exactly ½ is half a hit.
    """
    untied = [(p, d > 0) for p, d in zip(probabilities, differences, strict=True) if d]
    if not untied:
        return None
    hits = sum(0.5 if p == 0.5 else (p > 0.5) == better for p, better in untied)
    ece = expected_calibration_error([p for p, _ in untied], [better for _, better in untied])
    return Agreement(len(untied), len(probabilities) - len(untied), hits / len(untied), ece)


def expected_calibration_error(probabilities: Scores, outcomes: Sequence[bool], bins: int = 10) -> float:
    """Σ over equal-width bins of (share of the bin) · |mean probability − mean outcome|.

    The measure of training/calibrate.py, which cannot be imported without torch; a test holds the two
    together.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights=p - y, minlength=bins)).sum() / len(p))


def scored_candidates(
    record: Mapping[str, Any], score: Callable[[str], float], iterations: int | None = None
) -> list[tuple[float, float]]:
    """(win probability, judge's score of the candidate − of its baseline) of a gated run's first
    iterations."""
    best, found = str(record["reference"]), []
    for one in record["iterations"][:iterations]:
        if one["win_probability"] is not None:
            found.append((one["win_probability"], score(one["text"]) - score(best)))
        best = one["text"] if one["accepted"] else best
    return found


@dataclass(frozen=True)
class Edits:
    """What a system did to drafts that people rewrote, in percent of the drafts; distances are means, in
    characters.

    The last three are None without a toxicity judge; `both`: closer to a human text and less toxic.
    """

    n: int
    closer: float
    farther: float
    equal: float
    exact: float
    unchanged: float
    distance_before: float
    distance_after: float
    toxicity_before: float | None = None
    toxicity_after: float | None = None
    both: float | None = None


def edits(
    before: Scores,
    after: Scores,
    drafts: Sequence[str],
    texts: Sequence[str],
    toxicity: tuple[Scores, Scores] | None = None,
) -> Edits:
    """`before`, `after`: distance to the nearest human text; `toxicity`: P(toxic) before and after. All
    (n,)."""
    figures = Edits(
        n=len(before),
        closer=_percent(a < b for a, b in zip(after, before, strict=True)),
        farther=_percent(a > b for a, b in zip(after, before, strict=True)),
        equal=_percent(a == b for a, b in zip(after, before, strict=True)),
        exact=_percent(a == 0 for a in after),
        unchanged=_percent(t.strip() == d.strip() for t, d in zip(texts, drafts, strict=True)),
        distance_before=float(np.mean(before)),
        distance_after=float(np.mean(after)),
    )
    if toxicity is None:
        return figures
    toxic_before, toxic_after = toxicity
    improved = zip(after, before, toxic_after, toxic_before, strict=True)
    return replace(
        figures,
        toxicity_before=float(np.mean(toxic_before)),
        toxicity_after=float(np.mean(toxic_after)),
        both=_percent(a < b and ta < tb for a, b, ta, tb in improved),
    )


@dataclass(frozen=True)
class Bar:
    """A bar of the project: what is measured, the figure, and whether it passes."""

    name: str
    wanted: str
    figure: str
    passed: bool

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'MISS'}  {self.name}: {self.figure} (wanted {self.wanted})"
