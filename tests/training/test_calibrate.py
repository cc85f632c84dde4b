"""Calibration recovers known figures, stays finite, and its centred gap is antisymmetric."""

import math
import random
from pathlib import Path

import pytest

from tests.training.helpers import pairs, publish_tiny, tiny_config
from training.calibrate import centred_gaps, expected_calibration_error, fit, orders, sigmoid


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.5), (0.7, -1.0), (5.0, 0.0)])
def test_known_figures_are_recovered(a: float, b: float) -> None:
    rng = random.Random(1)
    gaps = [rng.gauss(0, 1) for _ in range(20_000)]
    found = fit(gaps, [rng.random() < sigmoid(a * g + b) for g in gaps])
    assert found == pytest.approx((a, b), abs=0.1 * a + 0.05)


def test_gaps_that_separate_the_outcomes_give_finite_figures() -> None:
    gaps = [i / 10 for i in range(-20, 21) if i]
    a, b = fit(gaps, [g > 0 for g in gaps])
    assert math.isfinite(a) and math.isfinite(b) and 1 < a < 1e4
    a, b = fit([1.0, 2.0, 3.0], [True, True, True])
    assert math.isfinite(a) and math.isfinite(b)


def test_gaps_that_are_all_zero_say_nothing() -> None:
    a, b = fit([0.0] * 10, [True] * 7 + [False] * 3)
    assert sigmoid(b) == pytest.approx(0.7, abs=0.01)
    assert math.isfinite(a)


def test_calibration_error_by_hand() -> None:
    # Bin 0.2–0.3 holds two (mean 0.25, half true), bin 0.9–1.0 holds two (mean 0.95, all true; 1.0 belongs
    # to it).
    error = expected_calibration_error([0.2, 0.29, 0.9, 1.0], [True, False, True, True])
    assert error == pytest.approx((abs(0.49 - 1) + abs(1.9 - 2)) / 4)
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0


def test_sigmoid_never_overflows() -> None:
    assert (sigmoid(-1e4), sigmoid(0), sigmoid(1e4)) == (0, 0.5, 1)


def test_half_of_the_pairs_stand_the_other_way_round() -> None:
    rows, better = orders(pairs(4))
    assert better == [True, False, True, False]
    assert (rows[1][1], rows[1][2]) == (pairs(4)[1].rejected, pairs(4)[1].chosen)


def test_centred_gaps_of_a_model(tmp_path: Path) -> None:
    """Whatever the model's raw score of (y, y) is, equal responses have gap 0, and turned ones the opposite
    gap."""
    from training.models import load_reward_model, load_tokenizer

    config = tiny_config(tmp_path)
    directory = publish_tiny(config, "gap_reward")
    model, tokenizer = load_reward_model(directory, 1), load_tokenizer(directory)
    rows = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs(6)]
    turned = [(x, old, new) for x, new, old in rows]
    same = [(x, new, new) for x, new, _ in rows]

    def gaps(chosen: list[tuple[object, str, str]], centering: str) -> list[float]:
        return centred_gaps([model], tokenizer, chosen, config.improve_turn, centering)  # type: ignore[arg-type]

    forward = gaps(rows, "antisymmetric")  # type: ignore[arg-type]
    assert gaps(turned, "antisymmetric") == pytest.approx([-g for g in forward], abs=1e-5)  # type: ignore[arg-type]
    assert max(map(abs, forward)) > 1e-3
    assert gaps(same, "antisymmetric") == pytest.approx([0] * 6, abs=1e-5)  # type: ignore[arg-type]
    assert gaps(same, "self") == pytest.approx([0] * 6, abs=1e-5)  # type: ignore[arg-type]


def test_an_unfit_gap_reward_is_not_calibrated_so_that_no_rl_can_follow_it(tmp_path: Path) -> None:
    from tests.training.helpers import alone, publish_tiny, tiny_config
    from training.calibrate import calibrate
    from training.checkpoint import read_manifest
    from training.errors import UnfitReward
    from training.prepare import prepare_data

    config = tiny_config(tmp_path / "run", "gap_reward.require_fit=true")
    prepare_data(config)
    publish_tiny(config, "gap_reward")
    with pytest.raises(UnfitReward, match="gap_reward is not fit for RL"):
        calibrate(alone(config, "calibrate"))
    assert read_manifest(config.output / "gap_reward")["gap"] is None
    calibrate(alone(tiny_config(config.output), "calibrate"))
    assert read_manifest(config.output / "gap_reward")["gap"]["calibration"]["n"] > 0
