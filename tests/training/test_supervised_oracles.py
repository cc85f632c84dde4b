"""What TRL's SFTTrainer and RewardTrainer compute, as training/ configures them, against plain torch.

Fine-tuning (METHOD §1):    L = −1/N·Σ_i Σ_k log M(y_ik | x_i, y_i<k),    N the tokens of all y_i of the batch

The sum runs over the tokens of the response y_w and its end token alone: the prompt, the reference and the
padding give neither loss nor gradient. The equation of the paper has no 1/N; a long response weighs more than
a short one in both. A replayed document (policy only) has no prompt, all its tokens but the first count.

The pointwise reward (METHOD §2):    L = −1/B·Σ_i log σ( r(x_i, y_w) − r(x_i, y_l) )

A conversation ends as the chat template ends it: the trainer must not put another end token behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.helpers import alone, publish_tiny, tiny_config
from training.chat import encode, encode_completion, improver_messages, reward_messages
from training.config import RunConfig
from training.corpus import base_corpus
from training.models import load_causal_lm, load_reward_model, load_tokenizer
from training.prepare import prepare_data, read_part

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

    def sequences(self) -> list[Tensor]:
        """The ids of each row without padding."""
        assert not self.inputs["attention_mask"].all(), "no padding, nothing to test"
        rows = zip(self.inputs["input_ids"], self.inputs["attention_mask"], strict=True)
        return [ids[mask.bool()] for ids, mask in rows]


def watch(module: Any, trainer: str, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps of the trainer that `module` builds, seen through its public `training_step`."""
    steps: list[Step] = []
    real: Any = getattr(module, trainer)

    class Recorder(real):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Tensor], items: Any) -> Tensor:
            kept = {name: value.clone() for name, value in inputs.items()}
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            filled = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
            with torch.no_grad():
                changed = {**inputs, "input_ids": filled}
                other = self.compute_loss(model, changed, num_items_in_batch=items).item()
            loss: Tensor = super().training_step(model, inputs, items)
            gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
            steps.append(Step(kept, weights, gradient, loss.item(), other))
            return loss

    monkeypatch.setattr(module, trainer, Recorder)
    return steps


def check(step: Step, model: Any, loss: Callable[[], Tensor]) -> None:
    """The trainer's loss and gradient are those of `loss`, computed by `model` at the step's weights."""
    for name, p in model.named_parameters():
        p.data, p.grad = step.weights[name].double(), None
    expected = loss()
    expected.backward()  # type: ignore[no-untyped-call]
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    for name, p in model.named_parameters():
        error = torch.linalg.norm(step.gradient[name] - p.grad)
        assert error < 1e-4 * torch.linalg.norm(p.grad), name


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
    steps = watch(sft, "SFTTrainer", monkeypatch)
    (sft.train_policy if role == "policy" else sft.train_improver)(alone(config, f"{role}_sft"))
    assert len(steps) == 2

    tokenizer, model = load_tokenizer(base), load_causal_lm(base).double()
    known = examples(config, tokenizer, role)
    prompts = []
    for step in steps:
        rows = [(ids, known[tuple(ids.tolist())]) for ids in step.sequences()]

        def loss(rows: Sequence[tuple[Tensor, int]] = rows) -> Tensor:
            logs = [
                model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1).gather(1, ids[prompt:, None])
                for ids, prompt in rows
            ]
            return -torch.cat(logs).mean()

        check(step, model, loss)
        assert step.loss_of_other_padding == pytest.approx(step.loss, rel=1e-6)
        prompts += [prompt for _, prompt in rows]
    assert (1 in prompts) == (role == "policy"), "the policy replays documents"


def test_the_steps_of_the_pointwise_reward_are_those_of_the_equation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import reward

    config = tiny_config(tmp_path, f"reward.optimizer={OPTIMIZER}", "reader=null")
    prepare_data(config)
    source = publish_tiny(config, "policy", config.output / "policy_sft")
    tokenizer = load_tokenizer(source)
    steps = watch(reward, "RewardTrainer", monkeypatch)
    reward.train_reward(alone(config, "reward"))
    assert len(steps) == 2

    model = load_reward_model(source, config.seed).double()
    pairs = read_part(config, "reward")
    chosen, rejected = (
        [tuple(ids) for ids in encode(tokenizer, [reward_messages(pair.prompt, y) for pair, y in rows])]
        for rows in ([(p, p.chosen) for p in pairs], [(p, p.rejected) for p in pairs])
    )
    for step in steps:
        ids = step.sequences()
        better, worse = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        for w, other in zip(better, worse, strict=True):
            assert chosen.index(tuple(w.tolist())) == rejected.index(tuple(other.tolist()))

        def loss(better: Sequence[Tensor] = better, worse: Sequence[Tensor] = worse) -> Tensor:
            scores = [torch.cat([model(ids[None]).logits for ids in part]) for part in (better, worse)]
            return torch.log1p(torch.exp(scores[1] - scores[0])).mean()

        check(step, model, loss)
