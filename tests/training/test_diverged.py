"""A run that diverges stops with `Diverged`, and the weights of its last save are numbers."""

from pathlib import Path

import pytest

from tests.training.helpers import alone, publish_tiny, tiny_config
from training.errors import Diverged
from training.prepare import prepare_data

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [
        (
            "{kind: adamw, learning_rate: 1.0e+30, batch: 8, epochs: 1, warmup: 0}",
            "no longer a number|loss is",
        ),
        ("{kind: adamw, learning_rate: 3, batch: 2, epochs: 1, warmup: 0}", "the loss rose from"),
    ],
)
def test_a_learning_rate_that_is_far_too_high(tmp_path: Path, optimizer: str, what: str) -> None:
    from training.sft import train_policy

    config = tiny_config(tmp_path / "run", f"sft_policy.optimizer={optimizer}", "sft_policy.replay=0")
    publish_tiny(config, "policy", config.output / "base")
    prepare_data(config)
    worker = alone(config, "policy_sft")
    worker.directory.mkdir(parents=True)
    with pytest.raises(Diverged, match=what) as raised:
        train_policy(worker)
    assert "Lower the learning rate" in str(raised.value)
    assert not (config.output / "policy_sft").exists()
    check_saves(worker.directory)


def check_saves(directory: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for path in directory.glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_file(path).values())
