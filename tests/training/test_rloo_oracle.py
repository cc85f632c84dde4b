"""What TRL's RLOO computes, as training/rl.py configures it, against plain torch written from METHOD §3.

Of prompt x, with n samples y_1 … y_n drawn from π_θ at temperature τ, each with score s_i:

    R_i = s_i − c·(4-grams of y_i that stood in it before) + (t if y_i was cut) − β·KL_i      the reward
    KL_i = Σ_k [ log π_θ(y_ik) − log π_SFT(y_ik) ]           summed over tokens, the end token too; not a mean
    A_i = R_i − 1/(n−1)·Σ_{j≠i} R_j                                 the baseline is the mean of the others
    Â_i = (A_i − mean A) / (std A + 1e-4)                    over all prompts of the batch, std with n−1
    L = −1/B·Σ_i min( ρ_i·Â_i, clip(ρ_i, 0.8, 1.2)·Â_i ),    ρ_i = π_θ(y_i|x) / π_old(y_i|x)

All log-probabilities are those of logits divided by τ. KL_i is a number, without a gradient of its own. Each
batch is used for one step, so π_old = π_θ, every ρ_i is 1, the clip never acts, and L is −mean Â = 0: it is
the gradient that learns, ∇L = −1/B·Σ_i Â_i·Σ_k ∇log π_θ(y_ik). A long response weighs more than a short one:
nothing is divided by its length. Then the gradient is clipped to norm 1, and AdamW (β 0.9 and 0.999, ε 1e-8,
no weight decay) steps at the configured learning rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.helpers import alone, pairs, publish_tiny, tiny_config
from training.chat import encode, improver_messages
from training.config import RlConfig, RunConfig
from training.models import load_causal_lm, load_tokenizer
from training.prepare import prepare_data
from training.trainers import Reporter

# Importing TRL alone takes longer than ten seconds.
pytestmark = pytest.mark.slow

STEPS, PROMPTS, SAMPLES = 3, 3, 4
SETTINGS = (
    f"rl_improver={{steps: [2, 1], prompts: {PROMPTS}, samples: {SAMPLES}, learning_rate: 0.002, beta: 0.4,"
    " temperature: 0.8, truncation_penalty: -0.75, repetition_penalty: 0.25}",
)
# Single precision rounds to about a tenth of these.
GRADIENT, MOVEMENT = 3e-5, 1e-4
Weights = dict[str, Tensor]


@dataclass
class Step:
    """What the trainer had and did in one optimizer step; everything but the samples is to be recomputed."""

    questions: list[Any] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    completions: list[list[int]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    gradient: Weights = field(default_factory=dict)  # after clipping
    weights: Weights = field(default_factory=dict)  # after the step
    logged: dict[str, float] = field(default_factory=dict)


def scorer(questions: Sequence[Any], candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """Depends on all three, and differs between samples."""
    return [
        0.1 * y.count("e") - 0.02 * len(y) + 0.001 * len(ref) + 0.01 * len(x[-1]["content"])
        for x, y, ref in zip(questions, candidates, references, strict=True)
    ]


def run_rloo(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """`training.rl._train` itself, watched through its callback and its reward function."""
    from training import rl

    steps: list[Step] = []
    reward_function = rl._reward_function

    class Recorder(Reporter):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append(Step())

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps[-1].gradient = {
                name: p.grad.detach().clone() for name, p in given["model"].named_parameters()
            }

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            super().on_step_end(args, state, control, model=model)
            steps[-1].weights = {name: p.detach().clone() for name, p in model.named_parameters()}

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            super().on_log(args, state, control, logs)
            if logs and "kl" in logs:
                steps[-1].logged = dict(logs)

    def recorded_reward_function(*arguments: Any) -> Any:
        reward = reward_function(*arguments)

        @wraps(reward)
        def recorded(**columns: Any) -> list[float]:
            values: list[float] = reward(**columns)
            steps[-1].questions += columns["question"]
            steps[-1].references += columns["reference"]
            steps[-1].completions += columns["completion_ids"]
            steps[-1].rewards += values
            return values

        return recorded

    monkeypatch.setattr(rl, "Reporter", Recorder)
    monkeypatch.setattr(rl, "_reward_function", recorded_reward_function)
    assert config.rl_improver is not None
    anchor = config.output / "improver_sft"
    rl._train(alone(config, "improver"), config.rl_improver, rows(config), scorer, "improver", anchor)
    return steps


def rows(config: RunConfig) -> list[dict[str, Any]]:
    """The data set as `training.rl.train_improver` writes it: phase 0, then phase 1."""
    return [
        {
            "prompt": improver_messages(pair.prompt, reference, config.improve_turn),
            "question": list(pair.prompt),
            "reference": reference,
            "phase": int(i >= 2 * PROMPTS),
        }
        for i, pair in enumerate(pairs(STEPS * PROMPTS))
        for reference in [pair.chosen if i % 2 else pair.rejected]
    ]


def publish_sft(config: RunConfig) -> Path:
    """An untrained improver whose samples are likely enough to repeat themselves, and sometimes end."""
    directory = publish_tiny(config, "improver", config.output / "improver_sft")
    model = load_causal_lm(directory)
    with torch.no_grad():
        model.model.norm.weight.mul_(4)
    model.save_pretrained(directory)
    return directory


# The oracle: plain torch in double precision, one sequence at a time, without padding or masks.


def log_probabilities(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Tensor:
    """log π(y_k | x, y_<k) of each token of the completion."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
    return found


def penalties(rl: RlConfig, completion: list[int], end: int) -> float:
    seen, repeated = set(), 0
    for ngram in zip(*(completion[k:] for k in range(4)), strict=False):
        repeated += ngram in seen
        seen.add(ngram)
    cut = rl.truncation_penalty if completion[-1] != end else 0.0
    return cut - rl.repetition_penalty * repeated


def advantages(rewards: Tensor) -> Tensor:
    """Shape: (prompts × samples,), as the result."""
    groups = rewards.view(PROMPTS, SAMPLES)
    others = (groups.sum(1, keepdim=True) - groups) / (SAMPLES - 1)
    found = (groups - others).flatten()
    spread = ((found - found.mean()) ** 2).sum() / (len(found) - 1)
    return (found - found.mean()) / (spread.sqrt() + 1e-4)


class Oracle:
    """Goes its own way from the SFT checkpoint; only what was sampled is given to it."""

    def __init__(self, rl: RlConfig, sft: Path) -> None:
        self.rl, self.k = rl, 0
        self.anchor, self.model = load_causal_lm(sft).double(), load_causal_lm(sft).double()
        self.weights: Weights = {name: p.data for name, p in self.model.named_parameters()}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def step(self, prompts: list[list[int]], completions: list[list[int]], scores: Tensor) -> None:
        """Sets kl (per sample), advantage, unanchored (the advantage without KL), loss, norm, gradient."""
        samples = list(zip(prompts, completions, strict=True))
        tau = self.rl.temperature
        with torch.no_grad():
            anchored = torch.stack([log_probabilities(self.anchor, x, y, tau).sum() for x, y in samples])
        log_p = torch.stack([log_probabilities(self.model, x, y, tau).sum() for x, y in samples])
        self.kl = log_p.detach() - anchored
        self.advantage = advantages(scores - self.rl.beta * self.kl)
        self.unanchored = advantages(scores)
        ratio = (log_p - log_p.detach()).exp()
        self.loss = -torch.minimum(ratio * self.advantage, ratio.clamp(0.8, 1.2) * self.advantage).mean()
        self.model.zero_grad()
        self.loss.backward()  # type: ignore[no-untyped-call]
        gradient = {name: p.grad for name, p in self.model.named_parameters()}
        self.norm = math.sqrt(sum((g**2).sum().item() for g in gradient.values()))
        self.gradient = {name: g * min(1.0, 1 / (self.norm + 1e-6)) for name, g in gradient.items()}
        self._adamw(self.rl.learning_rate)

    def _adamw(self, rate: float) -> None:
        self.k += 1
        for name, g in self.gradient.items():
            m, v = self.moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[name] = m, v
            self.weights[name] -= rate * m / (1 - 0.9**self.k) / ((v / (1 - 0.999**self.k)).sqrt() + 1e-8)


def relative_error(found: Weights, expected: Weights) -> float:
    """‖found − expected‖ / ‖expected‖ over all parameters together."""
    assert found.keys() == expected.keys()
    difference = sum(((found[name] - value) ** 2).sum().item() for name, value in expected.items())
    return math.sqrt(difference / sum((value**2).sum().item() for value in expected.values()))


def test_three_steps_of_rloo_are_those_of_the_equations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of phase 0 and one of phase 1 in one run, anchored on the SFT checkpoint in all of them."""
    config = tiny_config(tmp_path, *SETTINGS)
    rl = config.rl_improver
    assert rl is not None
    prepare_data(config)
    sft = publish_sft(config)
    steps = run_rloo(config, monkeypatch)
    assert len(steps) == STEPS

    tokenizer, oracle = load_tokenizer(sft), Oracle(rl, sft)
    end = tokenizer.eos_token_id
    start = {name: value.clone() for name, value in oracle.weights.items()}
    data = rows(config)
    for k, step in enumerate(steps):
        batch = [row for row in data[k * PROMPTS : (k + 1) * PROMPTS] for _ in range(SAMPLES)]
        assert step.questions == [row["question"] for row in batch]
        assert step.references == [row["reference"] for row in batch]
        texts = tokenizer.batch_decode(step.completions, skip_special_tokens=True)
        scores = scorer(step.questions, texts, step.references)
        rewards = [s + penalties(rl, y, end) for s, y in zip(scores, step.completions, strict=True)]
        assert step.rewards == pytest.approx(rewards)

        prompts = encode(tokenizer, [row["prompt"] for row in batch], generation_prompt=True)
        oracle.step(prompts, step.completions, torch.tensor(rewards, dtype=torch.float64))
        tokens = sum(map(len, step.completions))
        assert step.logged["kl"] == pytest.approx(oracle.kl.sum().item() / tokens, rel=1e-3, abs=1e-6)
        assert step.logged["loss"] == pytest.approx(oracle.loss.item(), abs=1e-5)
        assert step.logged["grad_norm"] == pytest.approx(oracle.norm, rel=GRADIENT)
        assert relative_error(step.gradient, oracle.gradient) < GRADIENT
        moved, expected = (
            {name: value - start[name] for name, value in weights.items()}
            for weights in (step.weights, oracle.weights)
        )
        assert relative_error(moved, expected) < MOVEMENT

    # Each term had something to say: in the last step the policy had left the anchor, …
    assert (oracle.advantage - oracle.unanchored).abs().max() > 0.05
    # … and some responses ended, were cut, repeated themselves.
    completions = [y for step in steps for y in step.completions]
    assert {y[-1] == end for y in completions} == {True, False}
    assert any(penalties(rl, y, y[-1]) for y in completions)
