"""A short run on committed data, step by step, against the figures it had when they were written down.

The gate for upgrades of the libraries: a change of their mathematics, of their defaults or of the order of
their random numbers shows here, another CPU's rounding does not. In sampling, one token that differs changes
all that follows it; so when only `improver` differs, see test_rloo_oracle.py, which takes the samples as they
come and says whether the equations still hold.

To accept new figures, run this file with PIT_WRITE_REFERENCE=1, and commit what changed.
"""

import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import alone, tiny_config
from training.checkpoint import Provenance, publish
from training.config import RunConfig
from training.data import load_pairs
from training.models import scratch_model
from training.prepare import prepare_data
from training.runtime import Worker
from training.tokenizer import train_tokenizer
from training.trainers import Reporter

REFERENCE = Path(__file__).parent / "reference"
# Committed, so that what the help desk's writer writes may change without these figures.
PAIRS, FIGURES = REFERENCE / "pairs.jsonl", REFERENCE / "trajectory.json"
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "tokenizers")
VARIABLE = "PIT_WRITE_REFERENCE"

OPTIMIZER = "learning_rate: 0.002, batch: 4, steps: 5"
SETTINGS = (
    f"data={{format: chat_pairs, path: {PAIRS}, heldout: 10}}",
    "reader=null",
    f"sft_policy={{optimizer: {{kind: adamw, {OPTIMIZER}}}}}",
    f"sft_improver.optimizer={{kind: adamw, {OPTIMIZER}}}",
    # No later stage starts from the pointwise reward: it shows Muon without handing its rounding on.
    f"reward.optimizer={{kind: muon, {OPTIMIZER}}}",
    f"gap_reward.optimizer={{kind: adamw, {OPTIMIZER}}}",
    "length={prompt: 64, reference: 64, response: 64}",
    "rl_improver={steps: [5, 0], prompts: 2, samples: 4, learning_rate: 0.005, beta: 0.2,"
    " truncation_penalty: -0.5}",
)
# Relative. With every vector instruction switched off, figures moved by 3e-5 and less.
TOLERANCES = {
    "learning_rate": 1e-6,
    "loss": 5e-4,
    "grad_norm": 2e-3,
    "entropy": 5e-4,
    "reward": 2e-3,
    "reward_std": 2e-3,
    "kl": 5e-3,
    "completions/mean_length": 1e-6,
}
# Muon computes in bfloat16; there the same moved loss by 6e-5 and gradients by 2e-3.
WIDER = {"reward": 10.0}
Figures = dict[str, list[dict[str, float]]]


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Figures:
    """What each optimizer step of fine-tuning, of both rewards and of RLOO logged."""
    from training import gap_reward, reward, rl, sft

    logged: list[dict[str, Any]] = []

    class Recorder(Reporter):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
            control.should_log = True
            return control

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "grad_norm" in logs:  # the last record is a summary of the run
                logged.append(dict(logs))

    publish_base(config)
    figures: Figures = {}
    stages: tuple[tuple[str, Any, Callable[[Worker], None]], ...] = (
        ("policy_sft", sft, sft.train_policy),
        ("improver_sft", sft, sft.train_improver),
        ("reward", reward, reward.train_reward),
        ("gap_reward", gap_reward, gap_reward.train_gap_reward),
        ("improver", rl, rl.train_improver),
    )
    for name, module, function in stages:
        monkeypatch.setattr(module, "Reporter", Recorder)
        logged.clear()
        function(alone(config, name))
        figures[name] = [
            {key: float(f"{logs[key]:.6g}") for key in TOLERANCES if key in logs} for logs in logged
        ]
    for step in figures["improver"]:
        del step["loss"]  # 0 but for rounding: advantages sum to zero
    return figures


def publish_base(config: RunConfig) -> None:
    """The data, and an untrained base model whose next token is not quite any token."""
    prepare_data(config)
    pairs = load_pairs("chat_pairs", PAIRS).pairs
    texts = [text for pair in pairs for text in (pair.prompt[0]["content"], pair.chosen, pair.rejected)]
    tokenizer = train_tokenizer([*texts, config.improve_turn], 400, 512)
    model = scratch_model(config, tokenizer, 512)
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    publish(config.output / "base", model, tokenizer, config, "policy", [], Provenance(None, None, {}, {}))


def differences(figures: Figures, reference: Figures) -> list[str]:
    """One line for each figure out of tolerance, added or gone."""
    lines = []
    for stage in {**reference, **figures}:
        found, expected = figures.get(stage, []), reference.get(stage, [])
        factor = WIDER.get(stage, 1.0)
        if len(found) != len(expected):
            lines.append(f"{stage}: {len(found)} steps, reference {len(expected)}")
        for step, (now, then) in enumerate(zip(found, expected, strict=False), start=1):
            for key in {**then, **now}:
                a, b = now.get(key, math.nan), then.get(key, math.nan)
                if not math.isclose(a, b, rel_tol=factor * TOLERANCES[key], abs_tol=1e-6):
                    lines.append(f"{stage} step {step} {key}: {now.get(key)}, reference {then.get(key)}")
    return lines


def message(lines: list[str], versions: dict[str, str], reference: dict[str, str]) -> str:
    """What differs, which libraries changed since, and how to accept it."""
    changed = [
        f"{name} {versions[name]} (reference {reference.get(name)})"
        for name in versions
        if versions[name] != reference.get(name)
    ]
    return "\n".join(
        [
            f"{len(lines)} figures differ from {FIGURES.relative_to(REFERENCE.parent)}:",
            *lines,
            f"Other versions: {', '.join(changed)}"
            if changed
            else f"The versions are the same ({', '.join(f'{k} {v}' for k, v in versions.items())}): "
            "the change is in this repository or in another library",
            f"If the change is meant: {VARIABLE}=1 pytest {Path(__file__).name}, and commit the new figures.",
        ]
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures are those of single precision on a CPU")
def test_the_run_is_the_one_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run(tiny_config(tmp_path, *SETTINGS), monkeypatch)
    # Without the build (+cpu): a build for a GPU computes the same on a CPU.
    versions = {name: version(name).split("+")[0] for name in LIBRARIES}
    if os.environ.get(VARIABLE) == "1":
        record = {"versions": versions, "figures": figures}
        FIGURES.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        pytest.skip(f"wrote {FIGURES.name}")
    reference = json.loads(FIGURES.read_text(encoding="utf-8"))
    lines = differences(figures, reference["figures"])
    assert not lines, message(lines, versions, reference["versions"])


def test_a_difference_names_the_figure_the_versions_and_what_to_do() -> None:
    reference: Figures = {"improver": [{"reward": 1.0, "kl": 0.0}, {"reward": 2.0, "kl": 0.5}]}
    assert differences(reference, reference) == []
    rounded: Figures = {"improver": [{"reward": 1.001, "kl": 1e-7}, {"reward": 2.0, "kl": 0.501}]}
    assert differences(rounded, reference) == []
    other: Figures = {"improver": [{"reward": 1.0, "kl": 0.1}, {"reward": 2.1}, {}], "policy": [{}]}
    lines = differences(other, reference)
    assert lines == [
        "improver: 3 steps, reference 2",
        "improver step 1 kl: 0.1, reference 0.0",
        "improver step 2 reward: 2.1, reference 2.0",
        "improver step 2 kl: None, reference 0.5",
        "policy: 1 steps, reference 0",
    ]
    told = message(lines, {"torch": "2.14.0", "trl": "1.16.0"}, {"torch": "2.13.0", "trl": "1.16.0"})
    assert all(line in told for line in lines)
    assert "Other versions: torch 2.14.0 (reference 2.13.0)\n" in told
    assert f"{VARIABLE}=1 pytest" in told
    assert "The versions are the same (trl 1.16.0)" in message(lines, {"trl": "1.16.0"}, {"trl": "1.16.0"})
