"""The dry run: its formulas against values worked out by hand, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.training.helpers import pairs, tiny_config, tiny_tokenizer
from training import costs, estimate
from training.chat import encode, gap_messages
from training.config import OptimizerConfig
from training.costs import Shape
from training.errors import ConfigError

# Two layers; 1000 parameters, of which 900 multiply every token.
SHAPE = Shape(1000, 1000, 900, 100, hidden=10, layers=2, attention=20, mlp=30, vocabulary=10)


def test_flops_are_two_forward_and_six_in_training_with_attention_on_top() -> None:
    # 7 tokens × (2·900 + 4·2·20·5)
    assert costs.forward_flops(SHAPE, 7, 5) == 7 * (1800 + 800)
    assert costs.training_flops(SHAPE, 7, 0) == 6 * 900 * 7
    assert costs.training_flops(SHAPE, 7, 0, checkpointing=True) == 8 * 900 * 7
    # All but a tenth is frozen: 0.9 of one forward is saved.
    assert costs.training_flops(replace(SHAPE, trainable=100), 7, 0) == pytest.approx(2.1 * 1800 * 7)


def test_memory_of_optimizer_activations_and_logits() -> None:
    assert costs.optimizer_bytes(SHAPE, "adamw", 4) == 8000
    # One moment for each weight, two for the 100 of the embedding.
    assert costs.optimizer_bytes(SHAPE, "muon", 4) == 4400
    # A layer keeps 8·10 + 6·20 + 4·30 = 320 values a token.
    assert costs.activation_bytes(SHAPE, 3, 4) == 3 * 2 * 320 * 4
    assert costs.activation_bytes(SHAPE, 3, 4, checkpointing=True) == 3 * (2 * 10 + 320) * 4
    assert costs.logits_bytes(3, 10) == 360


def test_generation_is_counted_for_every_token() -> None:
    rate = 1e3
    arithmetic = 4 * 6 * (1800 + 4 * 2 * 20 * 5) / (costs.EFFICIENCY * rate)
    overhead = 6 * 2 * costs.DECODE_SECONDS_PER_LAYER
    assert costs.decode_seconds(SHAPE, 4, 6, 5, rate) == pytest.approx(arithmetic + overhead)


def test_steps_are_counted_as_the_trainer_does() -> None:
    by_epochs = OptimizerConfig(learning_rate=1, batch=8, epochs=2)
    assert estimate.steps_of(by_epochs, 17) == 6
    assert estimate.steps_of(by_epochs.model_copy(update={"steps": 5, "epochs": None}), 17) == 5


def test_a_dry_run_tells_of_every_stage_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "matmul_rate", lambda *_: 1e10)
    console = Console(record=True, width=160)
    estimate.dry_run(tiny_config(tmp_path / "run"), console)
    text = console.export_text()
    for stage in (
        "base",
        "policy_sft",
        "improver_sft",
        "reader",
        "reward",
        "gap_reward",
        "calibrate",
        "improver",
    ):
        assert stage in text
    assert "pairs: sft" in text and "nothing was measured" in text
    assert list(tmp_path.iterdir()) == []


def test_the_gap_rewards_tokens_are_those_that_its_loss_reads(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    tokenizer, pair = tiny_tokenizer(config), pairs(1)[0]
    rows = {
        y + ref: encode(tokenizer, [gap_messages(pair.prompt, texts[y], texts[ref], config.improve_turn)])[0]
        for texts in [{"w": pair.chosen, "l": pair.rejected}]
        for y in "wl"
        for ref in "wl"
    }
    prefixes = {tuple(row[: i + 1]) for row in rows.values() for i in range(len(row))}
    assert estimate._tree(config, tokenizer, pair) == len(prefixes)
    other = tiny_config(tmp_path / "run", f"gap_reward.path={tmp_path}", "gap_reward.loss=single")
    assert estimate._tree(other, tokenizer, pair) == len(rows["wl"]) + len(rows["lw"])


def test_a_dry_run_refuses_parts_that_fill_no_batch_and_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "matmul_rate", lambda *_: 1e10)
    monkeypatch.setattr(estimate, "disk_bytes", lambda *_: 2**60)
    config = tiny_config(tmp_path / "run", "sft_policy.optimizer.batch=128", "data.pairs=60")
    with pytest.raises(ConfigError, match=r"(?s)sft_policy: part sft has .* fewer than the 128.*are free"):
        estimate.dry_run(config, Console(quiet=True))


def test_a_dry_run_refuses_a_base_that_is_not_there(tmp_path: Path) -> None:
    from training.errors import CheckpointError

    config = tiny_config(
        tmp_path / "run", f"base.path={tmp_path / 'none'}", "base.optimizer=null", "reader=null",
        "sft_policy.replay=0",
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        estimate.dry_run(config, Console(quiet=True))
