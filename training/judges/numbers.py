"""Judges made of a function: one that gives each response a number, or each two responses a margin.

In the pipeline formulas.py and reward_model.py give the functions. Both kinds ask them once for each text,
however many contests it stands in, and both are antisymmetric by construction: with the two responses
exchanged, the verdict is the opposite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.data import PreferencePair
from training.judges.protocol import Contest, Cost, Verdict

Score = Callable[[Sequence[tuple[PreferencePair, str]]], Sequence[float | None]]
"""Numbers for responses, each with its example; higher is better, None: there can be none. (n,) → (n,)"""

Margin = Callable[[Sequence[Contest]], Sequence[float | None]]
"""By how much the first response is better than the second; below 0 it is worse. (n,) → (n,)"""

UNSCORED = "too long for the judge"


@dataclass
class ScoreJudge:
    """The response with the higher number wins; within `tolerance` it is a tie."""

    name: str
    score: Score
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    _known: dict[tuple[str, str], float | None] = field(default_factory=dict, init=False, repr=False)
    _cost: Cost = field(default=Cost(), init=False, repr=False)

    def scores(self, examples: Sequence[PreferencePair], texts: Sequence[str]) -> list[float | None]:
        """The number of each response; shapes: all (n,)."""
        new = {}
        for example, text in zip(examples, texts, strict=True):
            if (example.id, text) not in self._known:
                new[example.id, text] = (example, text)
        if new:
            self._known.update(zip(new, self.score(list(new.values())), strict=True))
        return [self._known[example.id, text] for example, text in zip(examples, texts, strict=True)]

    def judge(self, contests: Sequence[Contest]) -> list[Verdict]:
        started = time.perf_counter()
        examples = [contest.example for contest in contests]
        # In one call, so that a model that scores in batches fills them.
        texts = [contest.first for contest in contests] + [contest.second for contest in contests]
        found = self.scores(examples * 2, texts)
        self._cost += Cost(contests=len(contests), seconds=time.perf_counter() - started)
        pairs = zip(found[: len(contests)], found[len(contests) :], strict=True)
        return [self._verdict(first, second) for first, second in pairs]

    def _verdict(self, first: float | None, second: float | None) -> Verdict:
        if first is None or second is None:
            return Verdict(None, UNSCORED)
        return Verdict(_sign(first - second, self.tolerance), scores=(first, second))

    def estimate(self, contests: Sequence[Contest]) -> Cost:
        return Cost(contests=len(contests))

    def cost(self) -> Cost:
        return self._cost


@dataclass
class MarginJudge:
    """The first response wins where its margin is above `tolerance`. The same text twice is a tie."""

    name: str
    margin: Margin
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    _known: dict[tuple[str, str, str], float | None] = field(default_factory=dict, init=False, repr=False)
    _cost: Cost = field(default=Cost(), init=False, repr=False)

    def judge(self, contests: Sequence[Contest]) -> list[Verdict]:
        started = time.perf_counter()
        new = {}
        for contest in contests:
            # Asked in one order only, whichever way round the contest stands.
            first, second = sorted((contest.first, contest.second))
            key = (contest.example.id, first, second)
            if first != second and key not in self._known:
                new[key] = Contest(contest.example, first, second)
        if new:
            self._known.update(zip(new, self.margin(list(new.values())), strict=True))
        self._cost += Cost(contests=len(contests), seconds=time.perf_counter() - started)
        return [self._verdict(contest) for contest in contests]

    def _verdict(self, contest: Contest) -> Verdict:
        if contest.first == contest.second:
            return Verdict(0, "the same text")
        first, second = sorted((contest.first, contest.second))
        margin = self._known[contest.example.id, first, second]
        if margin is None:
            return Verdict(None, UNSCORED)
        sign = _sign(margin, self.tolerance)
        return Verdict(sign if contest.first == first else -sign)

    def estimate(self, contests: Sequence[Contest]) -> Cost:
        return Cost(contests=len(contests))

    def cost(self) -> Cost:
        return self._cost


def _sign(margin: float, tolerance: float) -> int:
    return (margin > tolerance) - (margin < -tolerance)
