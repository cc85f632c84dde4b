"""ParaDetox's joint metric: a rewrite must be free of toxicity, keep the content, and be fluent.

In the pipeline this is part of the report for drafts that people detoxified; both classifiers are fitted on
the training split alone. The joint figure of one rewrite is (not toxic: 0 or 1) × chrF to the nearest human
rewrite (0 to 1) × (fluent: 0 or 1), as in the ParaDetox paper (Logacheva et al. 2022), whose classifiers and
sentence embeddings would have to be downloaded. All three see words, not typing. Content is measured by the
human rewrite, not by the draft: else the draft's own insults would be content to keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.data import PreferencePair
from training.judges.fluency import FluencyJudge
from training.judges.statistics import Mean, bootstrap_mean
from training.judges.toxicity import ToxicityJudge, plain_words

ORDER, BETA = 6, 2
RULE = "a rule: without swear words"


def chrf(text: str, reference: str) -> float:
    """Character n-gram F-score of one text, 0 to 1 (Popović 2015): n up to 6, β = 2, white space does not
    count."""
    a, b = "".join(text.split()), "".join(reference.split())
    precision, recall = [], []
    for n in range(1, ORDER + 1):
        ones, others = _grams(a, n), _grams(b, n)
        if ones and others:
            common = (ones & others).total()
            precision.append(common / ones.total())
            recall.append(common / others.total())
    if not precision or not sum(precision):
        return 0.0
    p, r = float(np.mean(precision)), float(np.mean(recall))
    return (1 + BETA**2) * p * r / (BETA**2 * p + r)


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


@dataclass(frozen=True)
class Parts:
    """What the metric says of each rewrite of one system, shapes (n,): P(toxic), chrF to the nearest human
    rewrite and to the draft (0 to 1), P(fluent)."""

    toxic: Sequence[float]
    content: Sequence[float]
    kept: Sequence[float]
    fluent: Sequence[float]

    def percent(self) -> dict[str, list[float]]:
        """The joint figure of each rewrite and what it is made of, 0 to 100; shapes (n,)."""
        clean, fluent = np.array(self.toxic) <= 0.5, np.array(self.fluent) > 0.5
        each = {
            "joint": clean * np.array(self.content) * fluent,
            "non_toxic": clean,
            "content": np.array(self.content),
            "kept": np.array(self.kept),
            "fluent": fluent,
        }
        return {name: (100.0 * values).tolist() for name, values in each.items()}


@dataclass(frozen=True)
class Joint:
    """One system's rewrites.

    `non_toxic` and `fluent` are shares in percent, `content` is chrF to the nearest
    human rewrite and `kept` chrF to the draft, 0 to 100; `joint` is the mean of the product, 0 to 100.

    What stands in the draft was written by a person and counts as fluent: the draft itself is.
    """

    non_toxic: float
    content: float
    kept: float
    fluent: float
    joint: Mean


@dataclass(frozen=True)
class JointFigures:
    """`systems` by name; the fluency judge finds `fluent` of people's own rewrites fluent, and `broken` of
    their broken copies not (percent): what its part of the figures is worth."""

    systems: dict[str, Joint]
    fluent: float
    broken: float


class JointMetric:
    """Both classifiers, fitted on pairs of a toxic draft (`rejected`) and its rewrite (`chosen`)."""

    def __init__(self, toxicity: ToxicityJudge, training: Sequence[PreferencePair], seed: int = 0) -> None:
        self.toxicity, self.fluency = toxicity, FluencyJudge(training, seed)
        self._swear_words = swear_words(training)

    def parts(self, pairs: Sequence[PreferencePair], texts: Sequence[str]) -> Parts:
        """Of each of one system's rewrites of the drafts of `pairs`; shapes (n,)."""
        drafts = [plain_words(pair.rejected) for pair in pairs]
        return Parts(
            toxic=self.toxicity.probabilities(texts),
            content=[_nearest(pair, text) for pair, text in zip(pairs, texts, strict=True)],
            kept=[chrf(plain_words(text), draft) for text, draft in zip(texts, drafts, strict=True)],
            fluent=self.fluency.probabilities(texts, [pair.rejected for pair in pairs]),
        )

    def rate(self, pairs: Sequence[PreferencePair], texts: Sequence[str]) -> Joint:
        """Of one system's rewrites of the drafts of `pairs`; shapes (n,)."""
        each = self.parts(pairs, texts).percent()
        joint = bootstrap_mean(each.pop("joint"))
        return Joint(joint=joint, **{name: float(np.mean(values)) for name, values in each.items()})

    def figures(self, pairs: Sequence[PreferencePair], systems: Mapping[str, Sequence[str]]) -> JointFigures:
        """Of several systems, beside the draft and the rule; `pairs` were not fitted on."""
        drafts = [pair.rejected for pair in pairs]
        every = {
            "the draft": drafts,
            RULE: list(map(self.without_swear_words, drafts)),
        }
        fluent, broken = self.fluency.accuracy(pairs)
        rated = {name: self.rate(pairs, texts) for name, texts in {**every, **systems}.items()}
        return JointFigures(rated, 100 * fluent, 100 * broken)

    def without_swear_words(self, draft: str) -> str:
        """The rule that any model should beat: the draft without the words that people mostly take out."""
        return " ".join(word for word in draft.split() if plain_words(word) not in self._swear_words)


def swear_words(training: Sequence[PreferencePair], share: float = 0.9, count: int = 5) -> set[str]:
    """Words of at least `count` drafts that no longer stand in at least `share` of their rewrites."""
    seen, gone = Counter[str](), Counter[str]()
    for pair in training:
        words, left = set(plain_words(pair.rejected).split()), set(plain_words(pair.chosen).split())
        seen.update(words)
        gone.update(words - left)
    return {word for word, n in seen.items() if n >= count and gone[word] >= share * n}


def _nearest(pair: PreferencePair, text: str) -> float:
    plain = plain_words(text)
    return max(chrf(plain, plain_words(reference)) for reference in pair.references or (pair.chosen,))
