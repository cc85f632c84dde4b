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

from training.calibrate import centred_gaps
from training.chat import assistant, improver_messages
from training.checkpoint import content_hash, read_manifest
from training.errors import DataError
from training.lengths import fitting_pairs
from training.models import (
    load_reading_tokenizer,
    load_reward_model,
    load_tokenizer,
    rl_model,
    training_dtype,
)
from training.paths import gap_reward_names
from training.references import policy_references, write_responses
from training.release import release_lm
from training.rl import draw
from training.runtime import Worker
from training.trainers import Reporter, append_metrics, common_arguments, train, trained


def train_improver(worker: Worker) -> None:
    """Train and publish `improver`."""
    config, dpo = worker.config, worker.config.dpo_improver
    assert dpo is not None
    anchor = config.output / "improver_sft"
    tokenizer = load_tokenizer(anchor)
    rows = _judged_refinements(worker, tokenizer, anchor)
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


def _judged_refinements(worker: Worker, tokenizer: Any, anchor: Path) -> list[dict[str, Any]]:
    """The same pairs in every worker: all randomness is seeded, and samples are gathered."""
    config, dpo = worker.config, worker.config.dpo_improver
    assert dpo is not None
    pairs = fitting_pairs(worker, tokenizer, "rl")
    from_data = [(list(pair.prompt), y) for pair in pairs for y in (pair.rejected, pair.chosen)]
    drawn = draw(from_data, dpo.prompts - dpo.prompts // 2, config.seed)
    prompts = draw([list(pair.prompt) for pair in pairs], dpo.prompts // 2, config.seed + 1)
    drawn += zip(prompts, policy_references(worker, prompts), strict=True)
    conversations = [improver_messages(x, y, config.improve_turn) for x, y in drawn]
    repeated = [messages for messages in conversations for _ in range(dpo.samples)]
    texts = write_responses(worker, anchor, repeated, dpo.temperature, config.seed)
    names = gap_reward_names(config)
    reader = load_reading_tokenizer(config.output / names[0])
    models = [load_reward_model(config.output / name, config.seed) for name in names]
    gap = read_manifest(config.output / names[0])["gap"]
    a = float(gap["calibration"]["a"])
    rows: list[dict[str, Any]] = []
    for i, (prompt, reference) in enumerate(drawn):
        # One that filled the whole budget was cut there.
        candidates = sorted(
            {
                text
                for text in texts[i * dpo.samples : (i + 1) * dpo.samples]
                if text.strip()
                and len(tokenizer(text, add_special_tokens=False)["input_ids"]) < config.length.response
            }
        )
        if len(candidates) < 2:
            continue
        judged = [(prompt, text, reference) for text in candidates]
        gaps = centred_gaps(models, reader, judged, config.gap_turn, gap["centering"])
        found = best_and_worst(gaps, a, dpo.confidence)
        if found is not None:
            chosen, rejected = ([assistant(candidates[j])] for j in found)
            rows.append({"prompt": conversations[i], "chosen": chosen, "rejected": rejected})
    if worker.main:
        append_metrics(worker, {"references": len(drawn), "judged": len(rows)})
    if len(rows) < dpo.optimizer.batch:
        raise DataError(
            f"{worker.stage}: of {len(drawn)} references only {len(rows)} have two refinements that the "
            f"gap reward tells apart with a probability of {dpo.confidence:g}; a batch needs "
            f"{dpo.optimizer.batch}",
            advice="Raise dpo_improver.prompts, samples or temperature, or lower its confidence",
        )
    return rows
