"""A batch in small pieces is the same batch: gradients add up to what they are at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.helpers import alone, publish_tiny, tiny_config
from training.config import micro_batches
from training.errors import ConfigError
from training.prepare import prepare_data


@given(st.integers(1, 512), st.integers(1, 8), st.none() | st.integers(1, 64))
def test_micro_batches_make_up_the_batch(batch: int, processes: int, micro: int | None) -> None:
    try:
        size, count = micro_batches(batch, processes, micro)
    except ConfigError:
        assert batch % (processes * (micro or 1))
    else:
        assert size * count * processes == batch
        assert micro is None or size <= micro


def first_step(output: Path, stage: str, *overrides: str) -> tuple[float, float]:
    """Loss and gradient norm of the first step of a stage, called in this process."""
    from training import gap_reward, reward, rl, sft

    config = tiny_config(output, *overrides)
    roles = {
        "base": "policy", "policy": "policy", "policy_sft": "policy", "improver_sft": "improver",
        "gap_reward": "gap_reward", "reward": "reward", "reader": "reader",
    }  # fmt: skip
    for name in {*roles} - {stage, "reader"}:
        publish_tiny(config, roles[name], config.output / name)
    prepare_data(config)
    worker = alone(config, stage)
    worker.directory.mkdir(parents=True)
    functions: dict[str, Any] = {
        "policy_sft": sft.train_policy,
        "reward": reward.train_reward,
        "gap_reward": gap_reward.train_gap_reward,
        "improver": rl.train_improver,
    }
    functions[stage](worker)
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    first = next(record for record in records if "grad_norm" in record)
    return first["loss"], first["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "section"),
    [
        ("policy_sft", "sft_policy.optimizer"),
        ("reward", "reward.optimizer"),
        ("gap_reward", "gap_reward.optimizer"),
        ("improver", "rl_improver"),
    ],
)
def test_the_first_step_is_the_same_in_pieces(tmp_path: Path, stage: str, section: str) -> None:
    settings = (
        "reader=null", "rl_improver.samples=4", "rl_improver.steps=[1, 0]", "gap_reward.optimizer.epochs=0.2",
    )  # fmt: skip
    at_once = first_step(tmp_path / "at_once", stage, *settings)
    in_pieces = first_step(tmp_path / "in_pieces", stage, *settings, f"{section}.micro_batch=2")
    assert in_pieces == pytest.approx(at_once, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [("model.gradient_checkpointing=true", 1e-4), ("model.dtype=bfloat16", 0.05)],
)
def test_what_saves_memory_changes_no_step(tmp_path: Path, setting: str, tolerance: float) -> None:
    """Recomputed activations are the same ones; bfloat16 is off by its rounding."""
    for stage in ("policy_sft", "gap_reward"):
        settings = ("reader=null", "gap_reward.optimizer.epochs=0.2", "sft_policy.optimizer.epochs=0.2")
        plain = first_step(tmp_path / f"{stage}-plain", stage, *settings)
        saving = first_step(tmp_path / f"{stage}-saving", stage, *settings, setting)
        assert saving == pytest.approx(plain, rel=tolerance, abs=1e-6), stage
