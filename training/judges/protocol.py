"""What every judge promises: given contests, a verdict for each.

In the pipeline judges serve evaluation only; no training stage sees one. Whatever a judge is made of (a
formula, a reward model, a language model behind an API, people), an evaluation reads `Verdict`s and what they
cost, and `win_rate` makes them a figure of the report.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.data import PreferencePair
from training.errors import DataError
from training.judges.statistics import WinRate, paired_bootstrap


@dataclass(frozen=True)
class Contest:
    """Two responses to the prompt of one example."""

    example: PreferencePair
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """+1: the first response is better, −1: the second is, 0: a tie, None: there is no verdict.

    `reason` says why there is none, or how a tie came about; `scores` are the numbers that the verdict
    follows from, where the judge gives each response one.
    """

    value: int | None
    reason: str = ""
    scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cost:
    """What verdicts cost. `money` is in the unit of the prices that were given, None without prices.

    `known`: contests that need no work: their verdicts are kept from before, or both texts are the same.
    """

    contests: int = 0
    known: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float | None = None
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        money = [each for each in (self.money, other.money) if each is not None]
        return Cost(
            self.contests + other.contests,
            self.known + other.known,
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            sum(money) if money else None,
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        parts = [f"{self.contests} contests"]
        if self.known:
            parts.append(f"{self.known} known already")
        if self.calls:
            parts.append(f"{self.calls} calls")
        if self.prompt_tokens or self.completion_tokens:
            parts.append(f"{self.prompt_tokens} tokens read, {self.completion_tokens} written")
        if self.money is not None:
            parts.append(f"{self.money:.2f} in money")
        if self.seconds >= 1:
            parts.append(f"{self.seconds:.0f} s")
        return ", ".join(parts)


class Judge(Protocol):
    """Says which of two responses is better.

    `settings` holds everything that decides a verdict, as JSON-ready values (models by the hash of their
    files, prompts by the hash of their text): two judges with equal settings give equal verdicts.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def estimate(self, contests: Sequence[Contest]) -> Cost:
        """What `judge` would cost at most; asks nobody."""

    def judge(self, contests: Sequence[Contest]) -> list[Verdict]:
        """A verdict for each contest, in their order; shape (n,).

        Raises:
            TrainingError: the judge cannot work. What it has judged so far is kept where verdicts are dear.
        """

    def cost(self) -> Cost:
        """Of everything that this judge has judged since it was made."""


def settings_hash(judge: Judge) -> str:
    """`sha256:` and the hex digest of a judge's name and settings."""
    content = json.dumps([judge.name, dict(judge.settings)], sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def contests(
    examples: Sequence[PreferencePair], first: Sequence[str], second: Sequence[str]
) -> list[Contest]:
    """One for each example; shapes: all (n,), in the same order."""
    return [Contest(*each) for each in zip(examples, first, second, strict=True)]


@dataclass(frozen=True)
class Judged:
    """`rate` is over the contests that have a verdict; `missing` counts the others by reason."""

    rate: WinRate
    missing: dict[str, int]


def win_rate(verdicts: Sequence[Verdict], seed: int = 0) -> Judged:
    """How often the first response won.

    Raises:
        DataError: no contest has a verdict; the message says why they have none.
    """
    missing = Counter(verdict.reason or "no verdict" for verdict in verdicts if verdict.value is None)
    values = [verdict.value for verdict in verdicts if verdict.value is not None]
    if not values:
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing.items()) or "nothing was judged"
        raise DataError(f"no verdict to count: {reasons}")
    return Judged(paired_bootstrap(values.count(1), values.count(-1), len(values), seed), dict(missing))
