"""`pit-train run --until STAGE` runs the stages up to that one, and a later run does the others."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.training.helpers import TINY, tiny_config
from tests.training.test_bad_input import pit_train
from training import pipeline
from training.config import RunConfig
from training.errors import ConfigError


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that ran; each publishes a manifest without a model, and calibration completes them."""
    names: list[str] = []

    def run_stage(config: RunConfig, stage: str, function: str, on_progress: Any) -> dict[str, float]:
        names.append(stage)
        if stage == "calibrate":
            for path in config.output.glob("gap_reward*/pit.json"):
                path.write_text(
                    json.dumps(json.loads(path.read_text()) | {"gap": {"calibration": {"a": 1.0}}})
                )
            (config.output / "metrics.jsonl").write_text(json.dumps({"stage": stage}) + "\n")
            return {"a": 1.0}
        directory = config.output / stage
        directory.mkdir()
        record = {"format": 1, "role": "any", "gap": None, "files": {}, "config_hash": config.digest(stage)}
        (directory / "pit.json").write_text(json.dumps(record))
        return {}

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    return names


def run(config: RunConfig, **options: Any) -> str:
    out = StringIO()
    pipeline.run(config, Console(file=out, width=160), **options)
    return out.getvalue()


def test_stages_up_to_the_gap_reward_and_its_calibration_then_the_rest(
    tmp_path: Path, ran: list[str]
) -> None:
    config = tiny_config(tmp_path / "run")
    until = ["base", "policy_sft", "improver_sft", "reader", "reward", "gap_reward", "calibrate"]
    told = run(config, until="gap_reward")
    assert ran == until
    assert "calibrate:" in told and "RLOO" not in told
    run(config, until="gap_reward")
    assert ran == until
    run(config)
    assert ran == [*until, "policy", "improver"]


def test_calibration_waits_for_the_last_gap_reward(tmp_path: Path, ran: list[str]) -> None:
    config = tiny_config(tmp_path / "run", "gap_reward.ensemble=2")
    assert "calibrate:" not in run(config, until="gap_reward")
    assert ran[-1] == "gap_reward"
    run(config, until="gap_reward_2")
    assert ran[-2:] == ["gap_reward_2", "calibrate"]


def test_an_early_stage_is_enough(tmp_path: Path, ran: list[str]) -> None:
    run(tiny_config(tmp_path / "run"), until="policy_sft")
    assert ran == ["base", "policy_sft"]


def test_a_stage_after_the_last_is_not_looked_at(tmp_path: Path, ran: list[str]) -> None:
    """Another RL is no reason to refuse the stages before it, and without `until` it is, as ever."""
    run(tiny_config(tmp_path / "run"))
    ran.clear()
    changed = tiny_config(tmp_path / "run", "rl_improver.beta=0.2")
    run(changed, until="gap_reward")
    assert ran == []
    with pytest.raises(ConfigError, match="improver was trained with other settings"):
        run(changed)


def test_an_unknown_stage_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert pit_train(monkeypatch, "run", str(TINY), f"output={output}", "--until", "gap") == 2
    assert capsys.readouterr().err == (
        "error: --until gap: this run has no such stage; choose one of base, policy_sft, improver_sft, "
        "reader, reward, gap_reward, policy, improver\n"
    )
    assert not output.exists()
