"""Judges that training never sees, and the statistics of their verdicts.

In the pipeline these serve evaluation only. A judge gives each response a number; two systems are compared
by who has the better number, example by example (`compare`), with a bootstrap interval.

- Edit distance to the nearest human rewrite, for data where people improved a draft.
- `ToxicityJudge`, for ParaDetox: logistic regression on n-grams, fitted on the training split of the data
  set and measured on its dev split. It sees words, not typing: case, spacing and punctuation are removed
  first, because in ParaDetox every draft is lower case and most are tokenised (" ." at the end), and most
  rewrites are neither: a judge of raw text would learn to tell typists apart.

Beyond the paper, whose judges are GPT-4, a DeBERTa reward model and people. No torch, no trainer library.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from training.data import PreferencePair
from training.errors import DataError

# ---------- edit distance


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters: the fewest insertions, deletions and substitutions."""
    return Levenshtein.distance(first, second)


def nearest_distance(text: str, references: Sequence[str]) -> int:
    """Edit distance in characters to the nearest of the human rewrites. Raises `DataError` without one."""
    if not references:
        raise DataError("no human rewrite to measure the distance to")
    return min(edit_distance(text, reference) for reference in references)


# ---------- win, lose, Δ


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


# ---------- toxicity


@dataclass(frozen=True)
class JudgeQuality:
    """What a judge is worth, on data it was not fitted on.

    `accuracy`: share of single texts put on the right side of ½. `pair_accuracy`: share of pairs whose
    rejected text is rated more toxic than the chosen one (a tie counts half). `n`: pairs.
    """

    n: int
    accuracy: float
    pair_accuracy: float


class ToxicityJudge:
    """P(toxic | text) by logistic regression on the word and character n-grams of `plain_words(text)`."""

    def __init__(self, pairs: Sequence[PreferencePair], seed: int = 0) -> None:
        """Fit on pairs whose `rejected` is toxic and `chosen` neutral: a training split, never dev."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        labels = {plain_words(pair.rejected): 1 for pair in pairs}
        # A text that is one pair's draft and another's rewrite stays toxic: somebody saw a need to mend it.
        for pair in pairs:
            labels.setdefault(plain_words(pair.chosen), 0)
        if set(labels.values()) != {0, 1}:
            raise DataError(
                "a toxicity judge needs toxic (rejected) and neutral (chosen) texts to learn from"
            )
        features = make_union(
            TfidfVectorizer(analyzer="word", token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True),
        )
        classifier = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000, random_state=seed)
        self._model: Any = make_pipeline(features, classifier)
        self._model.fit(list(labels), list(labels.values()))

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """P(toxic) of each text."""
        if not texts:
            return []
        rated = self._model.predict_proba([plain_words(text) for text in texts])
        return [float(row[1]) for row in rated]

    def quality(self, pairs: Sequence[PreferencePair]) -> JudgeQuality:
        """How good the judge is on pairs that it was not fitted on."""
        if not pairs:
            raise DataError("no pairs to measure the toxicity judge on")
        toxic = np.asarray(self.probabilities([pair.rejected for pair in pairs]))
        neutral = np.asarray(self.probabilities([pair.chosen for pair in pairs]))
        accuracy = ((toxic > 0.5).mean() + (neutral <= 0.5).mean()) / 2
        pair_accuracy = (toxic > neutral).mean() + (toxic == neutral).mean() / 2
        return JudgeQuality(len(pairs), float(accuracy), float(pair_accuracy))


def plain_words(text: str) -> str:
    """The words of a text without its typing: lower case, no punctuation but *, one space between words.

    Asterisks stay because they hide letters of swear words.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['’`]", "", text)
    return " ".join(re.sub(r"[^\w*]+", " ", text).split())
