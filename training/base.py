"""The base model from scratch: a tokenizer, then a language model on chat documents (TRL's SFTTrainer).

In the pipeline this is the first model stage; with `base.path` set it is skipped. The corpus comes from
corpus.py; recitation documents stand first, because a small model that has learned to copy learns the rest
faster. Beyond the paper, which starts from PaLM 2.
"""

from __future__ import annotations

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.chat import encode
from training.corpus import base_corpus, tokenizer_texts
from training.lengths import scratch_positions
from training.models import scratch_model
from training.release import release_lm
from training.runtime import Worker
from training.tokenizer import train_tokenizer
from training.trainers import Reporter, append_metrics, common_arguments, train, trained


def train_base(worker: Worker) -> None:
    """Train and publish `base`."""
    config = worker.config
    assert config.base.optimizer is not None
    documents = base_corpus(config)
    positions = scratch_positions(config.length)
    tokenizer = train_tokenizer(tokenizer_texts(config, documents), config.base.model.vocabulary, positions)
    model = scratch_model(config, tokenizer, positions)
    rows = encode(tokenizer, documents)
    cut = sum(len(ids) > positions for ids in rows)
    if worker.main:
        append_metrics(worker, {"documents": len(rows), "cut": cut, "positions": positions})
    rows = [ids[:positions] for ids in rows]
    # In the corpus's own order: batches of equal length would pad less, but hold one kind of document each,
    # and copying is then learned much later (docs/decisions/003).
    arguments = common_arguments(worker, config.base.optimizer, len(rows))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **{**arguments, "train_sampling_strategy": "sequential"},
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )
    train(trainer, worker, config.base.optimizer)
    release_lm(worker, trained(trainer), tokenizer, "policy", None)
