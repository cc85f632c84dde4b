"""Supervised fine-tuning of the policy and of the improver (TRL's SFTTrainer).

policy:   L = −Σ log M_P(y_w | x)
improver: L = −Σ log M_PIT(y_w | x, y_l), on y_w's tokens only (METHOD §1).

Beyond the paper: the policy may replay some of the base documents, so that it can still follow the feedback
and rewriting turns of the Self-Refine baseline.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset

from training.adapters import DIRECTORY
from training.chat import Conversation, completion_example, encode, improver_messages
from training.checkpoint import Role
from training.config import SftConfig
from training.corpus import base_corpus
from training.data import PreferencePair
from training.lengths import check_room, fitting_pairs
from training.models import Trained, causal_lm_to_train, load_causal_lm, load_tokenizer
from training.paths import base_source, improver_source
from training.release import release_lm
from training.runtime import Worker
from training.trainers import Reporter, common_arguments, train, trained


def train_policy(worker: Worker) -> None:
    """Train and publish `policy_sft`."""
    config = worker.config
    _train(worker, config.sft_policy, base_source(config), lambda pair: list(pair.prompt), "policy")


def train_improver(worker: Worker) -> None:
    """Train and publish `improver_sft`."""
    config, turn = worker.config, worker.config.improve_turn
    _train(
        worker,
        config.sft_improver,
        improver_source(config),
        lambda pair: improver_messages(pair.prompt, pair.rejected, turn),
        "improver",
    )


def _train(
    worker: Worker,
    sft: SftConfig,
    source: str,
    question: Callable[[PreferencePair], Conversation],
    role: Role,
) -> None:
    """`question` gives what the model reads before y_w."""
    config = worker.config
    tokenizer, model = load_tokenizer(source), causal_lm_to_train(config, source)
    check_room(config, tokenizer, model.config)
    positions = int(model.config.get_text_config().max_position_embeddings)
    examples = [
        completion_example(tokenizer, question(pair), pair.chosen)
        for pair in fitting_pairs(worker, tokenizer, "sft")
    ]
    if sft.replay:
        documents = base_corpus(config)[config.base.recitation_first :]
        for document in encode(tokenizer, documents[: int(sft.replay * len(examples))]):
            ids = document[:positions]
            examples.append({"input_ids": ids, "labels": ids})
    dataset = Dataset.from_list(examples)
    arguments = common_arguments(worker, sft.optimizer, len(dataset))
    if sft.packing:
        # Best-fit decreasing: whole examples alone. Positions restart with each, and by them attention knows
        # where one ends.
        dataset = pack_dataset(dataset.shuffle(seed=config.seed), positions, "bfd")
        arguments |= {"padding_free": True}
    else:
        dataset = dataset.add_column("length", [len(row) for row in dataset["input_ids"]])
        arguments |= {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )
    train(trainer, worker, sft.optimizer)
    release_lm(worker, trained(trainer), tokenizer, role, source)


def promote_policy(worker: Worker) -> None:
    """Publish `policy` as it is after SFT, for a run without RL of the policy."""
    if worker.main:
        source = worker.config.output / "policy_sft"
        if (source / DIRECTORY).is_dir():
            shutil.copytree(source / DIRECTORY, worker.directory / DIRECTORY, dirs_exist_ok=True)
        model = load_causal_lm(source)
        release_lm(worker, Trained(model, model.state_dict()), load_tokenizer(source), "policy", source)
