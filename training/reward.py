"""The pointwise reward r(x, y): L = −log σ( r(x,y_w) − r(x,y_l) ), TRL's RewardTrainer (METHOD §2).

In the pipeline it is what the policy's RL maximizes. It starts from the reader where the run has one, else
from the policy's SFT checkpoint.
"""

from __future__ import annotations

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from training.chat import encode, reward_messages
from training.lengths import reward_pairs
from training.models import load_tokenizer, reward_model_to_train
from training.release import release_reward_model
from training.runtime import Worker
from training.trainers import Reporter, common_arguments, train, trained


def train_reward(worker: Worker) -> None:
    """Train and publish `reward`."""
    config = worker.config
    assert config.reward is not None
    source = config.output / ("policy_sft" if config.reader is None else "reader")
    tokenizer, model = load_tokenizer(source), reward_model_to_train(config, source, config.seed)
    pairs = reward_pairs(worker, tokenizer, config.reward.optimizer)
    chosen = encode(tokenizer, [reward_messages(pair.prompt, pair.chosen) for pair in pairs])
    rejected = encode(tokenizer, [reward_messages(pair.prompt, pair.rejected) for pair in pairs])
    lengths = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **{
                **common_arguments(worker, config.reward.optimizer),
                "train_sampling_strategy": "group_by_length",
            },
            length_column_name="length",
            max_length=None,
        ),
        train_dataset=Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected, "length": lengths}),
        processing_class=tokenizer,
        callbacks=[Reporter(worker, ("loss", "accuracy"))],
    )
    train(trainer, worker, config.reward.optimizer)
    release_reward_model(worker, trained(trainer), tokenizer, "reward", source, config.seed)
