"""The gate and the budget: which candidate replaces the response so far, and what the run may still spend.

The raw r_gap(x, y, y) is not zero (only differences were trained), so a raw score decides nothing here: the
gate reads the calibrated, centred gap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.engines.base import Comparison, Message, Scorer
from app.errors import ContextTooLong


@dataclass(frozen=True, slots=True)
class GapCalibration:
    """How the manifest of the gap reward says to read its scores: P(new beats old) = sigmoid(a * g + b)."""

    centering: Literal["self", "antisymmetric"] = "self"
    a: float = 1.0
    b: float = 0.0

    def win_probability(self, gap: float) -> float:
        """sigmoid(a * gap + b), in [0, 1], without overflow."""
        z = self.a * gap + self.b
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The centred gap of a candidate over the baseline, and the calibrated probability that it is better."""

    gap: float
    win_probability: float


TIE = Verdict(gap=0.0, win_probability=0.5)


def same_text(one: str, other: str) -> bool:
    """Whether two responses are the same to a reader: white space at the ends does not count."""
    return one.strip() == other.strip()


def passes(candidate: str, baseline: str, verdict: Verdict | None, min_win_probability: float) -> bool:
    """Whether a candidate may replace the baseline. `verdict` None: there is no gate.

    An empty candidate and one that says the same never pass, whatever the calibration's `b` makes of a gap
    of 0.
    """
    if not candidate.strip() or same_text(candidate, baseline):
        return False
    return verdict is None or verdict.win_probability >= min_win_probability


@dataclass
class Gate:
    """Judges candidates against a baseline, for one run. `self_scores` keeps r_gap(x, old, old) while the
    baseline stays."""

    scorer: Scorer
    calibration: GapCalibration
    messages: tuple[Message, ...]
    self_scores: dict[str, float] = field(default_factory=dict)

    async def tokens_needed(self, candidates: Sequence[str], baseline: str) -> int:
        """Tokens that `judge` would read for these texts."""
        asked = [self._ask(*pair) for pair in self._pairs(candidates, baseline)]
        return sum([len(await self.scorer.encode(comparison)) for comparison in asked])

    async def judge(self, candidates: Sequence[str], baseline: str) -> tuple[list[Verdict | None], int]:
        """One verdict for each candidate, in order, from one batch; and the tokens read.

        A candidate equal to the baseline is a tie by definition and is not scored. One that is too long for
        the gap reward has no verdict. Raises what `Scorer.score` raises; `ContextTooLong` when the baseline
        alone is too long.
        """
        try:
            return await self._judge(candidates, baseline)
        except ContextTooLong:
            if not await self._fits(baseline, baseline):
                raise
        fitting = [candidate for candidate in candidates if await self._fits(candidate, baseline)]
        verdicts, tokens = await self._judge(fitting, baseline)
        found = dict(zip(fitting, verdicts, strict=True))
        return [found.get(candidate) for candidate in candidates], tokens

    async def _judge(self, candidates: Sequence[str], baseline: str) -> tuple[list[Verdict | None], int]:
        pairs = self._pairs(candidates, baseline)
        if not pairs:
            return [TIE for _ in candidates], 0
        scores = await self.scorer.score([self._ask(*pair) for pair in pairs])
        raw = dict(zip(pairs, scores.values, strict=True))
        if (baseline, baseline) in raw:
            self.self_scores = {baseline: raw[baseline, baseline]}
        return [self._verdict(candidate, baseline, raw) for candidate in candidates], scores.tokens

    async def _fits(self, candidate: str, baseline: str) -> bool:
        return len(await self.scorer.encode(self._ask(candidate, baseline))) <= self.scorer.context_length

    def _ask(self, candidate: str, baseline: str) -> Comparison:
        return Comparison(self.messages, candidate, baseline)

    def _pairs(self, candidates: Sequence[str], baseline: str) -> list[tuple[str, str]]:
        """The (candidate, baseline) pairs that centring needs, each once."""
        wanted: dict[tuple[str, str], None] = {}
        for candidate in candidates:
            if same_text(candidate, baseline):
                continue
            wanted[candidate, baseline] = None
            if self.calibration.centering == "antisymmetric":
                wanted[baseline, candidate] = None
            elif baseline not in self.self_scores:
                wanted[baseline, baseline] = None
        return list(wanted)

    def _verdict(self, candidate: str, baseline: str, raw: dict[tuple[str, str], float]) -> Verdict:
        if same_text(candidate, baseline):
            return TIE
        if self.calibration.centering == "antisymmetric":
            gap = 0.5 * (raw[candidate, baseline] - raw[baseline, candidate])
        else:
            gap = raw[candidate, baseline] - self.self_scores[baseline]
        return Verdict(gap, self.calibration.win_probability(gap))


class BudgetExhausted(Exception):
    """What was asked for does not fit into the rest of the token budget, or into a model's context."""


@dataclass
class TokenBudget:
    """Tokens that may be read and written. A generation starts only where its worst case fits.

    `limit` None: no limit.
    """

    limit: int | None = None
    used: int = 0

    def fits(self, tokens: int) -> bool:
        return self.limit is None or self.used + tokens <= self.limit

    def shares(self, worst_case: int, width: int) -> list["TokenBudget"]:
        """Budgets of `width` candidates that each need `worst_case` to begin: equal parts of what is left for
        as many as fit, nothing for the others.

        So no candidate spends what another counts on, and which of them is faster decides nothing.
        """
        if self.limit is None:
            return [TokenBudget() for _ in range(width)]
        left = self.limit - self.used
        fitting = min(width, left // worst_case)
        return [TokenBudget(left // fitting if number < fitting else 0) for number in range(width)]
