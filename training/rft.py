"""Rejection-sampling fine-tuning of the improver, before its RL: it learns the best of its own refinements.

L = −Σ log M_PIT(y* | x, y_ref), where y* is the one with the highest gap of several refinements of y_ref, and
y_ref itself where none is better (arXiv 2307.09288 §3.2.3, arXiv 2304.06767). Beyond the paper: RL alone
reinforces what it samples often, and a small model soon writes so many facts, whatever was asked, and nothing
else any more (docs/decisions/011). A later round samples more often what the round before has learned, and so
finds answers that are right in several ways at once.
"""

from __future__ import annotations

from operator import itemgetter

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.chat import completion_example
from training.errors import DataError
from training.models import causal_lm_to_train, load_tokenizer
from training.paths import rft_names
from training.refinements import Refined, judged_refinements
from training.release import release_lm
from training.runtime import Worker
from training.trainers import Reporter, append_metrics, common_arguments, train, trained


def train_improver(worker: Worker) -> None:
    """Train and publish one round's improver, `improver_rft` or `improver_rft_N`, from the round before's."""
    config, rft = worker.config, worker.config.rft_improver
    assert rft is not None
    names = ["improver_sft", *rft_names(config)]
    number = names.index(worker.stage)
    source = config.output / names[number - 1]
    tokenizer = load_tokenizer(source)
    refined = judged_refinements(
        worker, tokenizer, source, seed=config.seed + 10 * number,
        prompts=rft.prompts, samples=rft.samples, temperature=rft.temperature,
    )  # fmt: skip
    if worker.main:
        better = [gap for gap in (max(one.gaps, default=0.0) for one in refined) if gap > 0]
        gap = sum(better) / max(len(better), 1)
        append_metrics(worker, {"references": len(refined), "improved": len(better), "gap": gap})
    examples = [
        completion_example(tokenizer, one.conversation, best)
        for one in refined
        if (best := target(one)) is not None
    ]
    if len(examples) < rft.optimizer.batch:
        raise DataError(
            f"{worker.stage}: of {len(refined)} references only {len(examples)} are not empty or have a "
            f"refinement; a batch needs {rft.optimizer.batch}",
            advice="Raise rft_improver.prompts, or look at what the policy writes (pit-train evaluate)",
        )
    trainer = SFTTrainer(
        model=causal_lm_to_train(config, source),
        args=SFTConfig(
            **common_arguments(worker, rft.optimizer, len(examples)),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )
    train(trainer, worker, rft.optimizer)
    release_lm(worker, trained(trainer), tokenizer, "improver", source)


def target(refined: Refined) -> str | None:
    """The refinement with the highest gap, or the reference where none is above 0; None for an empty one,
    which nobody should learn to write."""
    best, gap = max(zip(refined.texts, refined.gaps, strict=True), key=itemgetter(1), default=("", 0.0))
    text = best if gap > 0 else refined.reference
    return text if text.strip() else None
