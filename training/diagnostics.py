"""Is a gap reward fit for RL? Its figures on held-out pairs, and a refusal when one is out of bounds.

RL finds and grows whatever is wrong with its reward, so the pipeline asks before the first step of RL, not
after the last (calibrate.py). Beyond the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev

from training.errors import UnfitReward

# z of a one-sided 95% bound.
_Z = 1.645


@dataclass(frozen=True)
class Fitness:
    """Of a gap reward on `n` held-out pairs, half of which hold the better response first.

    accuracy: how often the centred gap has the label's sign; `accuracy_low` its one-sided 95% lower bound.
    antisymmetry: correlation of r_gap(y1, y2) − r_gap(y2, y2) with r_gap(y1, y1) − r_gap(y2, y1), ideally 1:
        both say how much better y1 is.
    identity: standard deviation of r_gap(y, y), ideally 0, in units of the gaps. Not a reason to refuse: a
        reward that reads the candidate alone has about 1, and centring takes it away again.
    order_bias: how far the calibrated P(first is better) lies from ½ at gap 0.
    ece: expected calibration error.
    """

    n: int
    accuracy: float
    accuracy_low: float
    antisymmetry: float
    identity: float
    order_bias: float
    ece: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def fitness(
    forward: Sequence[float],
    backward: Sequence[float],
    identical: tuple[Sequence[float], Sequence[float]],
    better: Sequence[bool],
    *,
    order_bias: float,
    ece: float,
) -> Fitness:
    """From raw scores r_gap(y1, y2), r_gap(y2, y1), (r_gap(y1, y1), r_gap(y2, y2)), and whether y1 is better.

    `identical` may be shorter than the others: scores of the first rows are enough.
    """
    gaps = [(f - b) / 2 for f, b in zip(forward, backward, strict=True)]
    accuracy = fmean((g > 0) == y for g, y in zip(gaps, better, strict=True))
    spread = math.sqrt(fmean(g * g for g in gaps))
    return Fitness(
        n=len(gaps),
        accuracy=accuracy,
        accuracy_low=_lower_bound(accuracy, len(gaps)),
        antisymmetry=_correlation(
            [f - same for f, same in zip(forward, identical[1], strict=False)],
            [same - b for b, same in zip(backward, identical[0], strict=False)],
        ),
        identity=pstdev([*identical[0], *identical[1]]) / spread if spread else math.inf,
        order_bias=order_bias,
        ece=ece,
    )


def require_fit(found: Fitness, name: str) -> None:
    """Raises `UnfitReward` that names every figure out of bounds, its bound, and what to do.

    The bounds catch a broken reward, not a mediocre one: a trained one is far from each of them.
    """
    bounds = (
        ("accuracy_low", found.accuracy_low > 0.5, "> 0.5: it cannot tell better from worse"),
        ("antisymmetry", found.antisymmetry > 0.2, "> 0.2: turning a pair round does not turn its gap"),
        ("order_bias", found.order_bias < 0.2, "< 0.2: it prefers what stands first"),
        ("ece", found.ece < 0.2, "< 0.2: its probabilities do not come true"),
    )
    out = [
        f"{key} is {getattr(found, key):.3f}, wanted {wanted}" for key, holds, wanted in bounds if not holds
    ]
    if out:
        raise UnfitReward(
            f"{name} is not fit for RL ({found.n} held-out pairs): {'; '.join(out)}. Train it longer or on "
            "more pairs (gap_reward.optimizer, data), look at the pairs (pit-train data inspect), or set "
            "gap_reward.require_fit=false to go on all the same"
        )


def _lower_bound(share: float, n: int) -> float:
    """Wilson's one-sided 95% lower bound."""
    centre = share + _Z * _Z / (2 * n)
    margin = _Z * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
    return (centre - margin) / (1 + _Z * _Z / n)


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's; 0 when either does not vary."""
    mean_a, mean_b = fmean(a), fmean(b)
    covariance = fmean((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    scale = pstdev(a) * pstdev(b)
    return covariance / scale if scale else 0.0
