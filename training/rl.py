"""Reinforcement learning of the policy and of the improver, TRL's RLOOTrainer (METHOD §3).

policy:   max E[ r(x, y) ] − β·KL(M_P ‖ M_P^SFT)
improver: max E[ r_gap(x, y, y_ref) ] − β·KL(M_PIT ‖ M_PIT^SFT), in two phases: y_ref from the data (both y_l
and y_w), then y_ref from the policy that RL has trained. With `rft_improver` M_PIT^RFT stands for M_PIT^SFT.

Both phases are ONE run over an ordered data set, because the trainer takes the KL anchor from the checkpoint
that it loads: a second run would anchor on the first phase's result. The algorithm and all its settings are
our choice, the paper leaves them open.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from training.chat import Conversation, encode, improver_messages, reward_messages
from training.checkpoint import Role, content_hash
from training.config import RlConfig
from training.data import Message
from training.gap_reward import gap_scores, score
from training.guard import Guard, KlTarget
from training.lengths import fitting_pairs
from training.models import (
    load_reading_tokenizer,
    load_reward_model,
    load_tokenizer,
    rl_model,
    training_dtype,
)
from training.monitors import Monitor, repeated_ngrams
from training.paths import gap_reward_names, improver_anchor
from training.references import policy_references
from training.release import release_lm
from training.rollouts import rollout_arguments
from training.runtime import Worker
from training.trainers import Reporter, batch_arguments, common_arguments, train, trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Scorer = Callable[[Sequence[Sequence[Message]], Sequence[str], Sequence[str]], list[float]]


def train_policy(worker: Worker) -> None:
    """Train and publish `policy`."""
    config = worker.config
    assert config.rl_policy is not None
    rl = config.rl_policy
    tokenizer = load_tokenizer(config.output / "reward")
    model = load_reward_model(config.output / "reward", config.seed)

    def rewards(
        questions: Sequence[Sequence[Message]], candidates: Sequence[str], _: Sequence[str]
    ) -> list[float]:
        texts = [
            [*x, Message(role="assistant", content=y)] for x, y in zip(questions, candidates, strict=True)
        ]
        return score(model, encode(tokenizer, texts), tokenizer.pad_token_id)

    prompts = draw(
        [list(pair.prompt) for pair in fitting_pairs(worker, tokenizer, "rl")],
        rl.steps[0] * rl.prompts,
        config.seed,
    )
    rows = [{"prompt": prompt, "question": prompt, "reference": "", "phase": 0} for prompt in prompts]
    _train(worker, rl, rows, rewards, "policy", config.output / "policy_sft")


def train_improver(worker: Worker) -> None:
    """Train and publish `improver`."""
    config, rl = worker.config, worker.config.rl_improver
    assert rl is not None
    names = gap_reward_names(config)
    tokenizer = load_reading_tokenizer(config.output / names[0])
    pairs = fitting_pairs(worker, tokenizer, "rl")
    phase_0 = [(list(pair.prompt), y) for pair in pairs for y in (pair.rejected, pair.chosen)]
    rows = [(x, y, 0) for x, y in draw(phase_0, rl.steps[0] * rl.prompts, config.seed)]
    if rl.steps[1]:
        prompts = draw([list(pair.prompt) for pair in pairs], rl.steps[1] * rl.prompts, config.seed + 1)
        rows += [(x, y, 1) for x, y in zip(prompts, policy_references(worker, prompts), strict=True)]
    dataset = [
        {
            "prompt": improver_messages(x, y, config.improve_turn),
            "question": x,
            "reference": y,
            "phase": phase,
        }
        for x, y, phase in rows
    ]
    # After the sampling, which may need the whole GPU.
    models = [load_reward_model(config.output / name, config.seed) for name in names]

    def rewards(
        questions: Sequence[Sequence[Message]], candidates: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        judged = list(zip(questions, candidates, references, strict=True))
        return gap_scores(models, tokenizer, judged, config.gap_turn)

    _train(worker, rl, dataset, rewards, "improver", improver_anchor(config))


def _train(worker: Worker, rl: RlConfig, rows: list[Row], scorer: Scorer, role: Role, anchor: Path) -> None:
    config = worker.config
    tokenizer = load_tokenizer(anchor)
    guards: list[Any] = [Guard(worker, rl.guard)] if rl.guard else []
    if rl.kl_target is not None:
        guards.append(KlTarget(worker, rl.beta, rl.kl_target))
    trainer = RLOOTrainer(
        model=rl_model(config, anchor),
        reward_funcs=_reward_function(worker, rl, scorer, tokenizer),
        args=RLOOConfig(
            **common_arguments(worker)
            | batch_arguments(worker, rl.prompts * rl.samples, rl.micro_batch)
            | {
                "learning_rate": rl.learning_rate,
                # No warm-up: of the few steps, one would be spent at a learning rate of 0.
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "num_train_epochs": 1,
            },
            num_generations=rl.samples,
            max_completion_length=config.length.response,
            temperature=rl.temperature,
            beta=rl.beta,
            normalize_advantages=True,
            shuffle_dataset=False,
            pad_to_multiple_of=None,
            disable_dropout=True,
            **rollout_arguments(rl),
            model_init_kwargs=None
            if config.model.adapter
            else {"dtype": str(training_dtype(config)).removeprefix("torch.")},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Reporter(worker, ("reward", "kl", "gold"), explodes=False), *guards],
    )
    for guard in guards:
        guard.trainer = trainer
    train(trainer, worker)
    result, best = trained(trainer), dict[str, float]()
    if rl.guard:
        result, best = guards[0].finish(result)
    release_lm(
        worker, result, tokenizer, role, anchor,
        anchor=content_hash(anchor), metrics=_last_figures(trainer) | best,
    )  # fmt: skip


def _reward_function(
    worker: Worker, rl: RlConfig, scorer: Scorer, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., list[float]]:
    """TRL calls this with one entry a sample; the extra columns of the data set come as keyword arguments."""
    monitor = Monitor(worker.config)
    judge = _pointwise_judge(worker) if rl.guard and rl.guard.judge == "pointwise" else None

    def reward(
        completion_ids: list[list[int]],
        question: list[Conversation],
        reference: list[str],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        # Scored from the ids: text decoded by the trainer has lost its end token, and with it the difference
        # between a response that ended and one that was cut.
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        ended = [bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        scores = scorer(question, texts, reference)
        for name, value in monitor.figures(question, texts, reference, ended).items():
            log_metric(name, value)
        repeated = [repeated_ngrams(ids) for ids in completion_ids]
        log_metric("repeated", sum(repeated) / len(repeated))
        if judge is not None:
            won = judge(question, texts, reference)
            log_metric("pointwise", sum(won) / len(won))
        # A policy has no reference, and no length to keep to.
        longer = [
            max(0, len(y.split()) - len(r.split())) if r else 0 for y, r in zip(texts, reference, strict=True)
        ]
        return [
            s
            - rl.repetition_penalty * again
            - rl.length_penalty * words
            + (0.0 if end else rl.truncation_penalty)
            for s, again, words, end in zip(scores, repeated, longer, ended, strict=True)
        ]

    return reward


def _pointwise_judge(worker: Worker) -> Scorer:
    """Whether the pointwise reward finds a response better than its reference: 1.0 or 0.0."""
    directory = worker.config.output / "reward"
    tokenizer, model = load_tokenizer(directory), load_reward_model(directory, worker.config.seed)

    def judge(
        questions: Sequence[Sequence[Message]], candidates: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        new, old = (
            encode(tokenizer, [reward_messages(x, y) for x, y in zip(questions, each, strict=True)])
            for each in (candidates, references)
        )
        scores = score(model, [*new, *old], tokenizer.pad_token_id)
        return [float(a > b) for a, b in zip(scores, scores[len(new) :], strict=False)]

    return judge


def _last_figures(trainer: Any) -> dict[str, float]:
    names = ("reward", "kl", "gold", "copied", "length", "truncated")
    last: dict[str, float] = {}
    for record in trainer.state.log_history:
        last |= {name: float(record[name]) for name in names if name in record}
    return last


def draw(rows: list[Any], count: int, seed: int) -> list[Any]:
    """`count` rows in random order; a pass over all of them before any comes again."""
    rng = random.Random(seed)
    drawn: list[Any] = []
    while len(drawn) < count:
        drawn += rng.sample(rows, min(len(rows), count - len(drawn)))
    return drawn
