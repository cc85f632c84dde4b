"""DPO of the improver on its own refinements, judged by the gap reward: a second way to train it.

L = −log σ( β·[ log M(y⁺)/M_SFT(y⁺) − log M(y⁻)/M_SFT(y⁻) ] ), all given (x, y_ref), where y⁺ and y⁻ are the
best and the worst of several refinements of y_ref (arXiv 2305.18290; refinements as in EVOLVE and SRT).
Stands in the place of RL: the refinements are sampled once, from the fine-tuned improver, so it is cheaper
and stays closer to it. TRL's DPOTrainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from training.chat import assistant
from training.checkpoint import content_hash, read_manifest
from training.errors import DataError
from training.models import load_tokenizer, rl_model, training_dtype
from training.paths import gap_reward_names, improver_anchor
from training.refinements import judged_refinements
from training.release import release_lm
from training.runtime import Worker
from training.trainers import Reporter, append_metrics, common_arguments, train, trained


def train_improver(worker: Worker) -> None:
    """Train and publish `improver`."""
    config, dpo = worker.config, worker.config.dpo_improver
    assert dpo is not None
    anchor = improver_anchor(config)
    tokenizer = load_tokenizer(anchor)
    rows = _pairs(worker, tokenizer, anchor)
    trainer = DPOTrainer(
        model=rl_model(config, anchor),  # the trainer takes its reference model from the same place
        args=DPOConfig(
            **common_arguments(worker, dpo.optimizer, len(rows)),
            beta=dpo.beta,
            max_length=None,
            disable_dropout=True,
            model_init_kwargs=None
            if config.model.adapter
            else {"dtype": str(training_dtype(config)).removeprefix("torch.")},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Reporter(worker, ("loss", "accuracies", "margins"), explodes=False)],
    )
    train(trainer, worker, dpo.optimizer)
    release_lm(worker, trained(trainer), tokenizer, "improver", anchor, anchor=content_hash(anchor))


def best_and_worst(gaps: Sequence[float], a: float, confidence: float) -> tuple[int, int] | None:
    """Indices of the best and the worst refinement; None when σ(a·(best − worst)) is below `confidence`.

    `gaps` are centred gaps over the same reference, so that their difference compares the two.
    """
    best, worst = max(range(len(gaps)), key=gaps.__getitem__), min(range(len(gaps)), key=gaps.__getitem__)
    sure = 1 / (1 + math.exp(-max(a * (gaps[best] - gaps[worst]), 0.0))) >= confidence
    return (best, worst) if sure and best != worst else None


def _pairs(worker: Worker, tokenizer: Any, anchor: Path) -> list[dict[str, Any]]:
    """The best and the worst refinement of each reference whose gap rewards tell them apart."""
    config, dpo = worker.config, worker.config.dpo_improver
    assert dpo is not None
    refined = judged_refinements(
        worker, tokenizer, anchor, seed=config.seed,
        prompts=dpo.prompts, samples=dpo.samples, temperature=dpo.temperature,
    )  # fmt: skip
    a = float(read_manifest(config.output / gap_reward_names(config)[0])["gap"]["calibration"]["a"])
    rows: list[dict[str, Any]] = []
    for one in refined:
        found = best_and_worst(one.gaps, a, dpo.confidence) if len(one.gaps) > 1 else None
        if found is not None:
            chosen, rejected = ([assistant(one.texts[j])] for j in found)
            rows.append({"prompt": one.conversation, "chosen": chosen, "rejected": rejected})
    if worker.main:
        append_metrics(worker, {"references": len(refined), "judged": len(rows)})
    if len(rows) < dpo.optimizer.batch:
        raise DataError(
            f"{worker.stage}: of {len(refined)} references only {len(rows)} have two refinements that the "
            f"gap reward tells apart with a probability of {dpo.confidence:g}; a batch needs "
            f"{dpo.optimizer.batch}",
            advice="Raise dpo_improver.prompts, samples or temperature, or lower its confidence",
        )
    return rows
