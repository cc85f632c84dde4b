"""Trackers: refused before any work, no part of the digest, and figures that can be read back."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import alone, tiny_config
from training import trackers
from training.errors import ConfigError


def test_the_names_are_those_that_transformers_knows() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(trackers.TRACKERS) == set(INTEGRATION_TO_CALLBACK)


def test_unknown_and_missing_trackers_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from training.pipeline import run

    with pytest.raises(ConfigError, match=r"'tensorbord' is unknown; choose from .*tensorboard"):
        run(tiny_config(tmp_path / "run", "trackers=[tensorbord]"), Console(quiet=True))
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="wandb is not installed: pip install 'wandb'"):
        run(tiny_config(tmp_path / "run", "trackers=[wandb]"), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_trackers_do_not_make_another_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert config.digest("improver") == tiny_config(tmp_path, "trackers=[wandb]").digest("improver")


def test_tensorboard_has_the_figures_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'pit-serve[tracking]'")
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import Trainer, TrainingArguments

    from training.trainers import common_arguments

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    worker = alone(tiny_config(tmp_path, "trackers=[tensorboard]"), "policy_sft")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> dict[str, Any]:
            return {"loss": ((self.weight * x) ** 2).mean()}

    arguments = common_arguments(worker) | {"max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    rows = [{"x": torch.ones(1)} for _ in range(8)]
    Trainer(model=Model(), args=TrainingArguments(**arguments), train_dataset=rows).train()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "policy_sft"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
