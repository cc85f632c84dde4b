"""RL within bounds: β follows the KL, a run that goes wrong stops, and its best weights are kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.helpers import alone, publish_tiny, tiny_config
from training.checkpoint import content_hash, read_manifest
from training.config import GuardConfig
from training.errors import ConfigError, Diverged
from training.guard import Guard, adapted_beta, verdict
from training.models import Trained

JUDGES = st.lists(st.floats(-5, 5), max_size=30)


def history(judges: list[float], **figures: float) -> list[dict[str, float]]:
    return [{"judge": judge, **figures} for judge in judges]


def guard(**settings: Any) -> GuardConfig:
    return GuardConfig.model_validate({"judge": "reward", "window": 2, "patience": 3, **settings})


def test_beta_by_hand() -> None:
    assert adapted_beta(0.1, [], 0.05) == 0.1
    assert adapted_beta(0.1, [0.05], 0.05) == pytest.approx(0.1)
    assert adapted_beta(0.1, [0.5], 0.05) == pytest.approx(0.102)  # clipped
    assert adapted_beta(0.1, [0.0], 0.05) == pytest.approx(0.098)
    assert adapted_beta(0.1, [0.055, 0.045], 0.05) == pytest.approx(0.1 * 1.01 * 0.99)


@given(st.lists(st.floats(0, 1), max_size=20), st.lists(st.floats(0, 1), max_size=20))
def test_a_resumed_run_comes_to_the_same_beta(before: list[float], after: list[float]) -> None:
    at_once = adapted_beta(0.1, before + after, 0.3)
    assert math.isclose(adapted_beta(adapted_beta(0.1, before, 0.3), after, 0.3), at_once)


@given(JUDGES)
def test_the_best_step_ends_the_best_window(judges: list[float]) -> None:
    best, reason = verdict(history(judges), guard(patience=100))
    assert reason is None
    windows = {end: (judges[end - 2] + judges[end - 1]) / 2 for end in range(2, len(judges) + 1)}
    assert best == (max(windows, key=lambda end: windows[end]) if windows else None)


@given(JUDGES, st.integers(0, 30))
def test_a_verdict_is_never_taken_back(judges: list[float], more: int) -> None:
    """What stopped a run still stops it when later steps are known; its best stays the best."""
    best, reason = verdict(history(judges), guard())
    if reason is not None:
        assert verdict(history([*judges, *[9.0] * more]), guard()) == (best, reason)


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    best, reason = verdict(history([1, 2, 3, 3, 2, 2, 2]), guard())
    assert best == 4
    assert reason == "reward has not risen above 3.000 since step 4"


@pytest.mark.parametrize(
    ("bound", "inside", "outside", "said"),
    [
        ({"kl": 0.5}, {"kl": 0.4}, {"kl": 0.7}, "kl 0.550 is above 0.5"),
        ({"copied": 0.9}, {"copied": 0.85}, {"copied": 1.0}, "copied 0.925 is above 0.9"),
        ({"truncated": 0.1}, {"truncated": 0.0}, {"truncated": 0.3}, "truncated 0.150 is above 0.1"),
        ({"edit": 0.1}, {"edit": 0.15}, {"edit": 0.01}, "edit 0.080 is below 0.1"),
        ({"words": 1.5}, {"words": 10.0}, {"words": 24.0}, "words 17.0 is above 1.5 times the 10.0"),
    ],
)
def test_a_crossed_bound_ends_it_and_is_never_the_best(
    bound: dict[str, float], inside: dict[str, float], outside: dict[str, float], said: str
) -> None:
    steps = [*history([1, 2, 3], **inside), *history([9], **outside)]
    best, reason = verdict(steps, guard(**bound))
    assert best == 3
    assert reason is not None and reason.startswith(said)
    assert verdict(steps, guard()) == (4, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl_improver.kl_target=0.1", "rl_improver.beta=0"], "above 0 to start from"),
        (["rl_policy.guard={judge: pointwise}"], "judges improvers"),
        (["rl_policy.guard={judge: gold, copied: 0.5}"], "no reference to copy"),
        (["rl_improver.guard={judge: gold}", "reader=null", "data.format=chat_pairs", "data.path=x"], "gold"),
        (["dpo_improver={optimizer: {learning_rate: 0.1, batch: 2, epochs: 1}, prompts: 4}"], "not both"),
        (["rl_improver=null"], "not neither"),
        (
            [
                "rl_improver=null",
                "dpo_improver={optimizer: {learning_rate: 0.1, batch: 8, epochs: 1}, prompts: 4}",
            ],
            "must fill at least one batch",
        ),
        (
            ["rft_improver={optimizer: {learning_rate: 0.1, batch: 8, epochs: 1}, prompts: 4}"],
            "must fill at least one batch",
        ),
    ],
)
def test_impossible_combinations(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, *overrides)


def published(output: Path, *overrides: str, stage: str = "improver") -> Any:
    """A run that has come as far as the improver's last stages."""
    from training.checkpoint import update_manifest
    from training.prepare import prepare_data

    config = tiny_config(output, *overrides)
    roles = {"policy": "policy", "improver_sft": "improver", "gap_reward": "gap_reward", "reward": "reward"}
    for name, role in roles.items():
        publish_tiny(config, role, config.output / name)
    calibration = {"a": 1.0, "b": 0.0, "ece": 0.0, "n": 1}
    update_manifest(
        config.output / "gap_reward",
        {"gap": {"reads": "pair", "centering": "antisymmetric", "calibration": calibration}},
    )
    prepare_data(config)
    worker = alone(config, stage)
    worker.directory.mkdir(parents=True)
    return config, worker


def metrics(config: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_guarded_run_stops_and_publishes_its_best_step(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from training.rl import train_improver

    config, worker = published(
        tmp_path / "run", "rl_improver.steps=[30, 0]", "rl_improver.kl_target=0.001",
        "rl_improver.learning_rate=0.01",
        "rl_improver.guard={judge: pointwise, window: 2, patience: 2, kl: 5, truncated: 1, words: 50}",
    )  # fmt: skip
    train_improver(worker)
    record = next(r for r in metrics(config) if "stopped" in r)
    steps = [r for r in metrics(config) if "pointwise" in r]
    assert len(steps) < 30
    assert record["stopped"].startswith("pointwise has not risen")
    assert read_manifest(config.output / "improver")["metrics"]["best_step"] == record["best_step"]
    best = load_file(worker.directory / f"best-{record['best_step']}.safetensors")
    final = load_file(config.output / "improver" / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in final)
    betas = [r["beta"] for r in metrics(config) if "beta" in r]
    assert betas[0] == 0.1 and len(betas) == len(steps)
    assert betas == [
        pytest.approx(adapted_beta(0.1, [r["kl"] for r in steps[:i]], 0.001)) for i in range(len(betas))
    ]


def test_a_run_that_never_kept_within_its_bounds_publishes_nothing(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    worker = alone(tiny_config(tmp_path / "run"), "improver")
    callback, control = Guard(worker, guard(kl=0.5)), TrainerControl()
    state = TrainerState(log_history=[{"reward": 1.0, "kl": 0.9}] * 2)
    callback.on_log(None, state, control)
    assert control.should_training_stop
    with pytest.raises(Diverged, match=r"improver: kl 0.900 is above 0.5 .* nothing to publish"):
        callback.finish(Trained(None, {}))


@pytest.mark.slow
def test_dpo_on_judged_refinements(tmp_path: Path) -> None:
    from training.dpo import train_improver

    config, worker = published(
        tmp_path / "run", "rl_improver=null",
        "dpo_improver={optimizer: {learning_rate: 0.001, batch: 2, epochs: 1}, prompts: 8, samples: 16, "
        "confidence: 0.5}",
    )  # fmt: skip
    train_improver(worker)
    manifest = read_manifest(config.output / "improver")
    assert manifest["role"] == "improver"
    assert manifest["anchor"] == manifest["base"]
    counts = next(r for r in metrics(config) if "judged" in r)
    assert counts["references"] == 8 and 2 <= counts["judged"] <= 8
    first = next(r for r in metrics(config) if "loss" in r)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # model and reference are the same


@pytest.mark.slow
def test_fine_tuning_on_the_best_refinements_comes_before_rl(tmp_path: Path) -> None:
    from training.rft import train_improver
    from training.rl import train_improver as reinforce

    config, worker = published(
        tmp_path / "run",
        "rft_improver={optimizer: {learning_rate: 0.001, batch: 2, epochs: 1}, prompts: 8, samples: 4}",
        stage="improver_rft",
    )
    train_improver(worker)
    manifest = read_manifest(config.output / "improver_rft")
    assert manifest["role"] == "improver"
    assert manifest["base"] == content_hash(config.output / "improver_sft")
    counts = next(r for r in metrics(config) if "improved" in r)
    assert counts["references"] == 8 and 0 < counts["improved"] <= 8 and counts["gap"] > 0
    reinforce(alone(config, "improver"))
    assert read_manifest(config.output / "improver")["anchor"] == content_hash(config.output / "improver_rft")


@given(st.lists(st.floats(-5, 5), max_size=8))
def test_the_target_is_the_best_refinement_or_the_reference(gaps: list[float]) -> None:
    from training.refinements import Refined
    from training.rft import target

    found = target(Refined([], "reference", [str(i) for i in range(len(gaps))], gaps))
    if max(gaps, default=0) > 0:
        assert found is not None and gaps[int(found)] == max(gaps)
    else:
        assert found == "reference"


def test_an_empty_reference_that_nothing_improves_is_not_learned() -> None:
    from training.refinements import Refined
    from training.rft import target

    assert target(Refined([], " ", [], [])) is None
    assert target(Refined([], "", ["worse"], [-1.0])) is None
    assert target(Refined([], "", ["better"], [1.0])) == "better"


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.1, 5), st.floats(0.5, 0.99))
def test_best_and_worst(gaps: list[float], a: float, confidence: float) -> None:
    from training.dpo import best_and_worst

    found = best_and_worst(gaps, a, confidence)
    sure = 1 / (1 + math.exp(-a * (max(gaps) - min(gaps)))) >= confidence
    assert (found is not None) == (sure and max(gaps) > min(gaps))
    if found is not None:
        assert gaps[found[0]] == max(gaps) and gaps[found[1]] == min(gaps)
