"""`ToxicityJudge`, for ParaDetox: logistic regression on n-grams, fitted on the training split of the data
set and measured on its dev split.

It sees words, not typing: case, spacing and punctuation are removed first, because in ParaDetox every draft
is lower case and most are tokenised (" ." at the end), and most rewrites are neither: a judge of raw text
would learn to tell typists apart. Beyond the paper. No torch, no trainer library.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data import PreferencePair
from training.errors import DataError


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
