"""Which gap rewards RL may follow: a made-up good one passes, each kind of broken one is named."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.diagnostics import Fitness, fitness, require_fit
from training.errors import UnfitReward


def judged(
    n: int = 400, *, skill: float = 2.0, bias: float = 0.0, wobble: float = 0.1, turn: float = -1.0
) -> Fitness:
    """A reward whose raw scores are skill·(±1) + noise, `turn` times that the other way round."""
    rng = random.Random(4)
    better = [i % 2 == 0 for i in range(n)]
    gaps = [(skill if y else -skill) + rng.gauss(0, 1) for y in better]
    forward = [3.0 + bias + g for g in gaps]
    backward = [3.0 + bias + turn * g for g in gaps]
    identical = [3.0 + bias + rng.gauss(0, wobble) for _ in gaps]
    return fitness(forward, backward, (identical, identical), better, order_bias=0.01, ece=0.03)


def test_a_good_one_passes() -> None:
    found = judged()
    require_fit(found, "gap_reward")
    assert found.accuracy > 0.95 and found.accuracy_low < found.accuracy
    assert found.antisymmetry == pytest.approx(1, abs=0.02)
    assert found.identity < 0.1


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (judged(skill=-2.0), "accuracy_low"),
        (judged(20, skill=0.3), "accuracy_low"),
        (judged(turn=0.9), "antisymmetry"),
    ],
)
def test_a_broken_one_is_refused_by_name(found: Fitness, named: str) -> None:
    with pytest.raises(UnfitReward, match=f"gap_reward is not fit for RL .*{named} is .*require_fit=false"):
        require_fit(found, "gap_reward")


def test_figures_of_the_calibration_count_too() -> None:
    good = judged()
    for named in ("order_bias", "ece"):
        with pytest.raises(UnfitReward, match=f"{named} is 0.300"):
            require_fit(Fitness(**{**good.as_dict(), named: 0.3}), "gap_reward")  # type: ignore[arg-type]


@given(st.floats(-100, 100))
def test_a_number_added_to_every_score_changes_nothing(offset: float) -> None:
    """The five-term loss leaves it open."""
    assert judged(bias=offset).as_dict() == pytest.approx(judged().as_dict(), rel=1e-6, abs=1e-6)


def test_scores_that_are_all_the_same_are_refused_without_dividing_by_zero() -> None:
    found = fitness([1.0] * 8, [1.0] * 8, ([1.0] * 4, [1.0] * 4), [True, False] * 4, order_bias=0.0, ece=0.0)
    with pytest.raises(UnfitReward, match="accuracy_low"):
        require_fit(found, "gap_reward")
