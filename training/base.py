"""The base model from scratch: a tokenizer, then a language model on chat documents (TRL's SFTTrainer).

In the pipeline this is the first model stage; with `base.path` set it is skipped. The corpus comes from
corpus.py; recitation documents stand first, because a small model that has learned to copy learns the rest
faster. Beyond the paper, which starts from PaLM 2.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.chat import encode
from training.checkpoint import Provenance, generation_golden, publish
from training.corpus import base_corpus, tokenizer_texts
from training.data import load_pairs
from training.models import recommend_sampling, scratch_model
from training.optim import make_optimizer
from training.runtime import Worker
from training.tokenizer import train_tokenizer
from training.trainers import Reporter, common_arguments, train


def train_base(worker: Worker) -> None:
    """Train and publish `base`."""
    config = worker.config
    assert config.base.optimizer is not None
    length = config.length
    documents = base_corpus(config)
    # Feedback and rewriting (Self-Refine) make the longest conversations: four turns, each a response long.
    positions = -(-(length.prompt + length.reference + 3 * length.response + 32) // 64) * 64
    tokenizer = train_tokenizer(tokenizer_texts(config, documents), config.base.model.vocabulary, positions)
    model = scratch_model(config, tokenizer, positions)
    rows = [ids[:positions] for ids in encode(tokenizer, documents)]
    first = config.base.recitation_first
    order = _by_length(rows[:first], config.base.optimizer.batch, config.seed)
    order += _by_length(rows[first:], config.base.optimizer.batch, config.seed + 1)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **{**common_arguments(worker, config.base.optimizer), "train_sampling_strategy": "sequential"},
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": order, "labels": order}),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
        optimizers=(make_optimizer(model, config.base.optimizer), None),
    )
    train(trainer, worker)
    if worker.main:
        heldout = load_pairs("chat_pairs", config.output / "data" / "heldout.jsonl").pairs
        recommend_sampling(model, tokenizer, config.sampling.policy_temperature, length.response)
        golden = generation_golden(model.eval(), tokenizer, heldout[:3], None)
        data: dict[str, Any] = {"name": config.name, "seed": config.seed, "documents": len(documents)}
        provenance = Provenance(None, None, data, {})
        publish(config.output / "base", model, tokenizer, config, "policy", golden, provenance)


def _by_length(rows: list[list[int]], batch: int, seed: int) -> list[list[int]]:
    """Shuffle, then sort by length within stretches of 16 batches, then shuffle the batches: less padding."""
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    stretch = 16 * batch
    batches: list[list[list[int]]] = []
    for start in range(0, len(rows), stretch):
        part = sorted(rows[start : start + stretch], key=len)
        batches += [part[i : i + batch] for i in range(0, len(part), batch)]
    full = [b for b in batches if len(b) == batch]
    rng.shuffle(full)
    return [row for b in full for row in b]
