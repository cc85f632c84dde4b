"""Two ways to guess which response people preferred without a language model: its length, and its words.

In the pipeline these stand beside the gap reward in `pit-train accuracy`: a gap reward that does no better
has learned no more than they did. Both are logistic regressions without an intercept on a difference of
features, y_w's minus y_l's, so that a pair that is turned round gets the opposite margin. Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data import PreferencePair
from training.errors import DataError

# Differences of features of texts: (first texts, second texts) → a matrix with a row for each pair.
_Difference = Callable[[Sequence[str], Sequence[str]], Any]

_FOLDS = 5
_STRENGTHS = [10.0**power for power in range(-5, 2)]
# Words of one letter too: "I" says more about a refusal than most.
_WORD = r"(?u)\b\w[\w'’]*"


@dataclass(frozen=True)
class Judged:
    """Margins (log-odds) by which y_w is preferred to y_l, one for each pair; above 0 is right, 0 is a tie.

    `model` says in words what was fitted.
    """

    margins: list[float]
    model: str


def length(training: Sequence[PreferencePair], pairs: Sequence[PreferencePair]) -> Judged:
    """Logistic regression on ln words(y_w) − ln words(y_l), fitted on `training`, direction and all.

    Raises `DataError` for too few training pairs.
    """
    features, labels = _oriented(training, _log_ratio)
    fitted = _regression(1e6).fit(features, labels)
    weight = float(fitted.coef_[0, 0])
    preferred = "longer" if weight > 0 else "shorter"
    return Judged(_margins(fitted, pairs, _log_ratio), f"{preferred} is better, weight {weight:+.2f}")


def bag_of_words(
    training: Sequence[PreferencePair], pairs: Sequence[PreferencePair], seed: int = 0
) -> Judged:
    """Logistic regression on which words and pairs of words only one of the two responses holds.

    Fitted on `training`; L2's strength is the one with the best log loss in a five-fold cross-validation
    there.

    Raises `DataError` for too few training pairs.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    vectorizer = CountVectorizer(token_pattern=_WORD, ngram_range=(1, 2), binary=True)
    # A word in case the responses hold none: the vectorizer refuses an empty vocabulary.
    vectorizer.fit([text for pair in training for text in (pair.chosen, pair.rejected)] + ["empty"])

    def difference(first: Sequence[str], second: Sequence[str]) -> Any:
        return vectorizer.transform(first) - vectorizer.transform(second)

    features, labels = _oriented(training, difference)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    fitted = GridSearchCV(_regression(1.0), {"C": _STRENGTHS}, scoring="neg_log_loss", cv=folds)
    fitted.fit(features, labels)
    strength = fitted.best_params_["C"]
    return Judged(_margins(fitted, pairs, difference), f"{features.shape[1]} n-grams, C = {strength:g}")


def _log_ratio(first: Sequence[str], second: Sequence[str]) -> Any:
    """Shape (n, 1)."""
    counts = np.array([[len(text.split()) for text in texts] for texts in (first, second)])
    logs = np.log(np.maximum(counts, 1))
    return (logs[0] - logs[1])[:, None]


def _oriented(training: Sequence[PreferencePair], difference: _Difference) -> tuple[Any, list[int]]:
    """Features and labels with every other pair turned round: a regression needs both classes.

    Without an intercept this changes no loss. Having each pair both ways round instead would put it on both
    sides of a cross-validation.
    """
    if len(training) < 2 * _FOLDS:
        raise DataError(f"{len(training)} pairs to fit a baseline on; at least {2 * _FOLDS} are needed")
    labels = [1 - i % 2 for i in range(len(training))]
    first = [pair.chosen if label else pair.rejected for pair, label in zip(training, labels, strict=True)]
    second = [pair.rejected if label else pair.chosen for pair, label in zip(training, labels, strict=True)]
    return difference(first, second), labels


def _margins(fitted: Any, pairs: Sequence[PreferencePair], difference: _Difference) -> list[float]:
    features = difference([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    margins: list[float] = fitted.decision_function(features).tolist()
    return margins


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, fit_intercept=False, max_iter=1_000)
