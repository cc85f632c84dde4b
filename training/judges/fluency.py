"""Is a rewrite fluent? A classifier that learned to tell people's rewrites from broken copies of them.

In the pipeline this is one part of ParaDetox's joint metric (joint.py), fitted on the training split alone.
The copies lack, repeat, exchange or misspell words, as models from scratch do and as a rule does that deletes
swear words. What it looks at: how likely each word is after the two before it, by counts of the training
texts; what stands in the draft in the same way was written by a person, and is taken as it is. The counts are
of nine tenths of the pairs, the classifier is fitted on the last tenth. Like `ToxicityJudge` it sees words.

Beyond the paper; published metrics use a classifier of linguistic acceptability that would have to be
downloaded.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from training.data import PreferencePair
from training.errors import DataError
from training.judges.toxicity import plain_words

_EDGE = "\n"
_BACKOFF = 0.4
_COPIES = 2
"""Broken copies of each text."""


class FluencyJudge:
    """P(fluent | rewrite, draft)."""

    def __init__(self, pairs: Sequence[PreferencePair], seed: int = 0) -> None:
        """Fit on pairs whose `chosen` is a person's rewrite of the draft `rejected`: a training split.

        Raises:
            DataError: there are fewer than 20.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier

        rng = random.Random(seed)
        both = {(plain_words(pair.chosen), plain_words(pair.rejected)) for pair in pairs}
        known = sorted((text, draft) for text, draft in both if text)
        if len(known) < 20:
            raise DataError(f"{len(known)} rewrites to learn fluency from; at least 20 are needed")
        rng.shuffle(known)
        tenth = max(10, len(known) // 10)
        self._counts = _counted([text for pair in known[tenth:] for text in pair])
        self._words = sorted(word for (word,) in self._counts[0] if word != _EDGE)
        self._total = self._counts[0].total()
        whole = known[:tenth]
        broken = [(self.broken(text, rng), draft) for text, draft in whole for _ in range(_COPIES)]
        features = np.array([self._features(*each) for each in [*whole, *broken]])
        labels = [1] * len(whole) + [0] * len(broken)
        self._model: Any = HistGradientBoostingClassifier(
            max_iter=100, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=5,
            class_weight="balanced", random_state=seed,
        )  # fmt: skip
        self._model.fit(features, labels)

    def probabilities(self, texts: Sequence[str], drafts: Sequence[str]) -> list[float]:
        """P(fluent) of each rewrite of a draft, shapes (n,); an empty one is not fluent."""
        if not texts:
            return []
        plain = [(plain_words(a), plain_words(b)) for a, b in zip(texts, drafts, strict=True)]
        rated = self._model.predict_proba(np.array([self._features(*each) for each in plain]))
        return [float(row[1]) if text else 0.0 for row, (text, _) in zip(rated, plain, strict=True)]

    def accuracy(self, pairs: Sequence[PreferencePair], seed: int = 0) -> tuple[float, float]:
        """Of pairs that it was not fitted on: the share of people's rewrites that it finds fluent, and the
        share of broken copies that it does not."""
        rng = random.Random(seed)
        plain = [(text, pair.rejected) for pair in pairs if (text := plain_words(pair.chosen))]
        if not plain:
            raise DataError("no rewrites to measure the fluency judge on")
        real, drafts = [text for text, _ in plain], [draft for _, draft in plain]
        broken = [self.broken(text, rng) for text in real]
        right = np.array(self.probabilities(real, drafts)) > 0.5
        wrong = np.array(self.probabilities(broken, drafts)) <= 0.5
        return float(right.mean()), float(wrong.mean())

    def broken(self, text: str, rng: random.Random) -> str:
        """A copy of a text with one to three faults."""
        words = text.split()
        for _ in range(rng.randint(1, 3)):
            kind, at = rng.randrange(6), rng.randrange(len(words))
            if kind == 0 and len(words) > 1:
                del words[at]
            elif kind == 1:
                words[at : at + 1] = [words[at]] * 2
            elif kind == 2 and at + 1 < len(words):
                words[at], words[at + 1] = words[at + 1], words[at]
            elif kind == 3:
                words[at] = rng.choice(self._words)
            elif kind == 4:
                place = rng.randrange(len(words[at]))
                words[at] = words[at][:place] + rng.choice("aeiourstln") + words[at][place + 1 :]
            else:
                words = words[: max(1, at)]
        return " ".join(words)

    def _features(self, text: str, draft: str) -> list[float]:
        words = [_EDGE, *text.split(), _EDGE]
        given = _counted([draft])
        pairs = list(pairwise(words))
        # Only what is new to the draft can be a fault of the rewrite.
        new = [i for i in range(1, len(words)) if pairs[i - 1] not in given[1]]
        scores = sorted(self._score(words, i) for i in new) or [0.0]
        strange = [word for word in words if (word,) not in self._counts[0] and (word,) not in given[0]]
        unseen = [pairs[i - 1] for i in new if pairs[i - 1] not in self._counts[1]]
        return [
            sum(scores) / len(scores),
            scores[0],
            scores[min(1, len(scores) - 1)],
            self._score(words, len(words) - 1) if len(words) - 1 in new else 0.0,
            float(len(strange)),
            float(len(unseen)),
            len(new) / len(pairs),
            float(len(pairs) - len(set(pairs))),
            float(sum(a == b for a, b in pairs)),
            math.log(len(words)),
        ]

    def _score(self, words: Sequence[str], i: int) -> float:
        """Log of the word's likelihood after the two before it ("stupid backoff", Brants et al. 2007)."""
        factor = 1.0
        for order in (3, 2):
            gram = tuple(words[max(0, i - order + 1) : i + 1])
            if len(gram) == order and (count := self._counts[order - 1][gram]):
                return math.log(factor * count / self._counts[order - 2][gram[:-1]])
            factor *= _BACKOFF
        return math.log(factor * (self._counts[0][words[i],] + 0.1) / self._total)


def _counted(texts: Sequence[str]) -> list[Counter[tuple[str, ...]]]:
    """Counts of words, of pairs and of triples; a mark stands before and after each text."""
    counts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
    for text in texts:
        words = [_EDGE, *text.split(), _EDGE]
        for order, found in enumerate(counts, 1):
            found.update(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
    return counts
