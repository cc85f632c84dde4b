"""Supervised fine-tuning of the policy and of the improver (TRL's SFTTrainer).

policy:   L = −Σ log M_P(y_w | x)
improver: L = −Σ log M_PIT(y_w | x, y_l), on y_w's tokens only (METHOD §1).

Beyond the paper: the policy may replay some of the base documents, so that it can still follow the feedback
and rewriting turns of the Self-Refine baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.chat import Conversation, encode, encode_completion, improver_messages
from training.checkpoint import Provenance, Role, content_hash, generation_golden, publish
from training.config import SftConfig
from training.corpus import base_corpus
from training.data import PreferencePair
from training.lengths import check_room, fitting_pairs, golden_pairs
from training.models import load_causal_lm, load_tokenizer, recommend_sampling
from training.optim import make_optimizer
from training.paths import base_source, data_record
from training.runtime import Worker
from training.trainers import Reporter, common_arguments, train


def train_policy(worker: Worker) -> None:
    """Train and publish `policy_sft`."""
    _train(worker, worker.config.sft_policy, lambda pair: list(pair.prompt), "policy")


def train_improver(worker: Worker) -> None:
    """Train and publish `improver_sft`."""
    turn = worker.config.improve_turn
    _train(
        worker,
        worker.config.sft_improver,
        lambda pair: improver_messages(pair.prompt, pair.rejected, turn),
        "improver",
    )


def _train(
    worker: Worker, sft: SftConfig, question: Callable[[PreferencePair], Conversation], role: Role
) -> None:
    """`question` gives what the model reads before y_w."""
    config = worker.config
    source = base_source(config)
    tokenizer, model = load_tokenizer(source), load_causal_lm(source)
    check_room(config, tokenizer, model)
    examples = []
    for pair in fitting_pairs(worker, tokenizer, "sft"):
        prompt, completion = encode_completion(tokenizer, question(pair), pair.chosen)
        labels = [-100] * len(prompt) + completion
        examples.append({"input_ids": prompt + completion, "labels": labels, "length": len(labels)})
    if sft.replay:
        documents = base_corpus(config)[config.base.recitation_first :]
        for document in encode(tokenizer, documents[: int(sft.replay * len(examples))]):
            ids = document[: model.config.max_position_embeddings]
            examples.append({"input_ids": ids, "labels": ids, "length": len(ids)})
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **{**common_arguments(worker, sft.optimizer), "train_sampling_strategy": "group_by_length"},
            length_column_name="length",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
        optimizers=(make_optimizer(model, sft.optimizer), None),
    )
    train(trainer, worker)
    if worker.main:
        sampling = config.sampling
        temperature = sampling.policy_temperature if role == "policy" else sampling.improver_temperature
        recommend_sampling(model, tokenizer, temperature, config.length.response)
        turn = config.improve_turn if role == "improver" else None
        golden = generation_golden(model.eval(), tokenizer, golden_pairs(worker, tokenizer), turn)
        provenance = Provenance(_hash(source), None, data_record(config), {})
        publish(config.output / f"{role}_sft", model, tokenizer, config, role, golden, provenance)


def promote_policy(worker: Worker) -> None:
    """Publish `policy` as it is after SFT, for a run without RL of the policy."""
    if worker.main:
        config, source = worker.config, worker.config.output / "policy_sft"
        tokenizer, model = load_tokenizer(source), load_causal_lm(source)
        golden = generation_golden(model.eval(), tokenizer, golden_pairs(worker, tokenizer), None)
        provenance = Provenance(content_hash(source), None, data_record(config), {})
        publish(config.output / "policy", model, tokenizer, config, "policy", golden, provenance)


def _hash(source: str) -> str | None:
    return content_hash(Path(source)) if Path(source).is_dir() else None
