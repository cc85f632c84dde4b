"""Preference accuracy: every judge is asked about the same pairs, and none is helped by how they stand."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.training.helpers import TINY, alone, pairs, publish_tiny, tiny_config
from tests.training.test_bad_input import pit_train
from training import accuracy
from training.baselines import Judged
from training.config import RunConfig
from training.lengths import fitting_pairs
from training.models import load_tokenizer
from training.prepare import prepare_data, read_part

# The longest held-out prompts of the help desk do not keep to it, most do.
SHORT = "length.prompt=48"


def published(output: Path, *overrides: str) -> RunConfig:
    """A run as `--until gap_reward` leaves it, its models untrained."""
    config = tiny_config(output, *overrides)
    prepare_data(config)
    for name in ("gap_reward", "reward"):
        publish_tiny(config, name)
    return config


def prefer(monkeypatch: pytest.MonkeyPatch, gap: Any) -> None:
    monkeypatch.setattr(accuracy, "centred_gaps", lambda models, tokenizer, rows, *_: [gap(*r) for r in rows])


def test_a_table_of_all_judges_on_the_same_pairs(tmp_path: Path) -> None:
    config = published(tmp_path / "run", SHORT)
    out = StringIO()
    path = accuracy.accuracy(config, Console(file=out, width=160))
    found = json.loads(path.read_text())
    assert path == config.output / "accuracy.json"
    assert [row["judge"] for row in found["rows"]] == [
        "gap reward (centred)",
        "pointwise reward",
        "length",
        "bag of words",
    ]
    for name in ("heldout", "reward"):
        part = read_part(config, name)
        tokenizer = load_tokenizer(config.output / "gap_reward")
        kept = fitting_pairs(alone(config, "accuracy"), tokenizer, name, report=False)
        assert 0 < len(kept) < len(part)
        assert found[name] == {"pairs": len(kept), "too_long": len(part) - len(kept)}
    for row in found["rows"]:
        assert row["accuracy"]["n"] == found["heldout"]["pairs"]
        assert 0 <= row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"] <= 1
    told = " ".join(out.getvalue().split())
    kept, too_long = found["heldout"]["pairs"], found["heldout"]["too_long"]
    assert f"held-out part: {kept} pairs, {too_long} more exceed the length budget" in told
    assert f"{100 * found['rows'][3]['accuracy']['mean']:.1f}" in told
    # No stage of training: the run's metrics stay as they were.
    assert not (config.output / "metrics.jsonl").exists()


def test_a_run_without_a_pointwise_reward_has_no_row_for_it(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "reader=null", "reward=null", "rl_policy=null")
    prepare_data(config)
    publish_tiny(config, "gap_reward")
    assert [row.judge for row in accuracy.measure(config).rows][1] == "length"


def test_a_gap_reward_is_right_where_it_prefers_the_chosen_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    publish_tiny(config, "gap_reward")
    asked = pairs(10)
    chosen = {pair.chosen for pair in asked}
    prefer(monkeypatch, lambda prompt, candidate, baseline: 2.0 if candidate in chosen else -2.0)
    assert accuracy.gap_reward(config, asked).margins == [2.0] * 10


def test_a_gap_reward_that_prefers_any_candidate_is_right_half_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, "gap_reward.centering=self")
    publish_tiny(config, "gap_reward")
    prefer(monkeypatch, lambda prompt, candidate, baseline: 1.0)
    [row] = accuracy.rows({"gap": accuracy.gap_reward(config, pairs(10))})
    assert row.accuracy.mean == 0.5


def test_the_pointwise_reward_is_asked_about_each_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores here are the lengths in tokens: the margin is the difference."""
    config = tiny_config(tmp_path)
    tokenizer = load_tokenizer(publish_tiny(config, "reward"))
    monkeypatch.setattr(accuracy, "score", lambda model, ids, pad: [float(len(each)) for each in ids])
    expected = [
        len(tokenizer(p.chosen)["input_ids"]) - len(tokenizer(p.rejected)["input_ids"]) for p in pairs(10)
    ]
    assert accuracy.pointwise_reward(config, pairs(10)).margins == expected
    assert len(set(expected)) > 1


def test_ties_count_half_and_differences_are_paired() -> None:
    first, second = accuracy.rows(
        {"first": Judged([1.0, 1.0, 0.0, -1.0], "a"), "second": Judged([1.0, -1.0, 0.0, -1.0], "b")}
    )
    assert (first.accuracy.mean, second.accuracy.mean) == (0.625, 0.375)
    assert first.gap_reward_ahead is None
    assert second.gap_reward_ahead is not None
    # Three pairs judged alike, one not: less spread than two accuracies apart would have.
    assert second.gap_reward_ahead.mean == 0.25
    assert second.gap_reward_ahead.low == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["output={}/none"],
            "none/gap_reward: not trained yet; run pit-train run CONFIG --until gap_reward f",
        ),
        (["output={}/none", "gap_reward.ensemble=2"], "--until gap_reward_2 first"),
        (["output={}/run"], "run/reward: not trained yet"),
        (["output={}/run", "gap_reward.loss=single"], "run/gap_reward was trained with other settings"),
        (["output={}/run", "gap_reward.centering=self"], "run/gap_reward was trained with other settings"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    publish_tiny(tiny_config(tmp_path / "run"), "gap_reward")
    capsys.readouterr()
    assert pit_train(monkeypatch, "accuracy", str(TINY), *(o.format(tmp_path) for o in overrides)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*/accuracy.json"))
