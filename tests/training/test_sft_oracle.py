"""What TRL's SFTTrainer computes, as training/sft.py configures it, against plain torch (METHOD §1).

    L = −1/N·Σ_i Σ_k log M(y_ik | x_i, y_i<k),      N the tokens of all y_i of the batch

The sum runs over the tokens of the response y_w and its end token alone: the prompt, the reference and the
padding give neither loss nor gradient. The equation of the paper has no 1/N; a long response weighs more than
a short one in both. A replayed document (policy only) has no prompt, all its tokens but the first count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.helpers import alone, publish_tiny, tiny_config
from training.chat import encode, encode_completion, improver_messages
from training.config import RunConfig
from training.corpus import base_corpus
from training.models import load_causal_lm, load_tokenizer
from training.prepare import prepare_data, read_part
from training.runtime import Worker

# Importing TRL alone takes longer than ten seconds.
pytestmark = pytest.mark.slow

OPTIMIZER = "{learning_rate: 0.001, batch: 6, steps: 2}"


@dataclass
class Step:
    """What the trainer was given and what it computed, and the loss again with other tokens as padding."""

    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]
    loss: float
    loss_of_other_padding: float


def run_sft(
    function: Callable[[Worker], None], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> list[Step]:
    """A stage of `training.sft`, watched through its trainer's public `training_step`."""
    from trl import SFTTrainer

    from training import sft

    steps: list[Step] = []

    class Recorder(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Tensor], items: Tensor) -> Tensor:
            kept = {name: value.clone() for name, value in inputs.items()}
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            filled = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
            with torch.no_grad():
                other = self.compute_loss(
                    model, {**inputs, "input_ids": filled}, num_items_in_batch=items
                ).item()
            loss: Tensor = super().training_step(model, inputs, items)
            gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
            steps.append(Step(kept, weights, gradient, loss.item(), other))
            return loss

    monkeypatch.setattr(sft, "SFTTrainer", Recorder)
    function(worker)
    return steps


def examples(config: RunConfig, tokenizer: Any, role: str) -> dict[tuple[int, ...], int]:
    """Everything that may be trained on: the ids of a sequence, and how many of them are its prompt."""
    found: dict[tuple[int, ...], int] = {}
    for pair in read_part(config, "sft"):
        messages = list(pair.prompt)
        if role == "improver":
            messages = improver_messages(pair.prompt, pair.rejected, config.improve_turn)
        prompt, response = encode_completion(tokenizer, messages, pair.chosen)
        found[(*prompt, *response)] = len(prompt)
    if role == "policy":
        found |= {tuple(ids): 1 for ids in encode(tokenizer, base_corpus(config))}
    return found


@pytest.mark.parametrize("role", ["policy", "improver"])
def test_the_steps_of_fine_tuning_are_those_of_the_equation(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import sft

    config = tiny_config(
        tmp_path, f"sft_{role}.optimizer={OPTIMIZER}", "sft_policy.replay=0.5", "base.documents=40"
    )
    prepare_data(config)
    base = publish_tiny(config, "policy", config.output / "base")
    function = sft.train_policy if role == "policy" else sft.train_improver
    steps = run_sft(function, alone(config, f"{role}_sft"), monkeypatch)
    assert len(steps) == 2

    tokenizer, model = load_tokenizer(base), load_causal_lm(base).double()
    known = examples(config, tokenizer, role)
    prompts: list[int] = []
    for step in steps:
        for name, p in model.named_parameters():
            p.data, p.grad = step.weights[name].double(), None
        assert not step.inputs["attention_mask"].all(), "no padding, nothing to test"
        total, tokens = torch.zeros((), dtype=torch.float64), 0
        for row, mask in zip(step.inputs["input_ids"], step.inputs["attention_mask"], strict=True):
            ids = row[mask.bool()]
            prompt = known[tuple(ids.tolist())]
            logs = model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
            total = total - logs.gather(1, ids[prompt:, None]).sum()
            tokens += len(ids) - prompt
            prompts.append(prompt)
        loss = total / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        assert step.loss == pytest.approx(loss.item(), rel=1e-5)
        assert step.loss_of_other_padding == pytest.approx(step.loss, rel=1e-6)
        for name, p in model.named_parameters():
            error = torch.linalg.norm(step.gradient[name] - p.grad)
            assert error < 1e-4 * torch.linalg.norm(p.grad), name
    assert (1 in prompts) == (role == "policy"), "the policy replays documents"
