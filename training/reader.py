"""The reader: a small model that has learned to read a response against its prompt (token classification).

A pretrained model knows whether a text says what another says; a reward model that starts from it has only
to learn what people prefer. A model from scratch must learn both from preference pairs, and at this size
never finds out that a value differs from the prompt's. So the demo's reward models start from this one. Its
exercises say what holds (stated so, asked for, said before, all said), never what is better: that comes from
the pairs alone. In the pipeline it stands before the pointwise reward. Beyond the paper.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from training.chat import encode_completion, improver_messages
from training.checkpoint import Provenance, publish
from training.data import Message
from training.errors import TrainingError
from training.helpdesk import make_question
from training.models import load_tokenizer, plain_model, scratch_token_classifier
from training.paths import base_source
from training.synthetic import reading_exercise
from training.trainers import Reporter, common_arguments, train, trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from training.runtime import Worker

VERDICTS = ("right", "wrong", "unasked", "again", "complete", "one missing", "more missing")


def train_reader(worker: Worker) -> None:
    """Train and publish `reader`."""
    config = worker.config
    assert config.reader is not None
    tokenizer = load_tokenizer(base_source(config))
    model = scratch_token_classifier(config, tokenizer, tokenizer.model_max_length, VERDICTS)
    rng = random.Random(f"reader-{config.seed}")
    rows = []
    for i in range(config.reader.exercises):
        question = make_question(rng, 0.05)
        # As the pointwise reward will read, and as the gap reward will, by turns: a batch pads less.
        count = 1 + i // config.reader.optimizer.batch % 2
        exercises = [reading_exercise(question, rng) for _ in range(count)]
        prompt = [Message(role="user", content=question.text)]
        rows.append(labelled(tokenizer, prompt, exercises, config.improve_turn))
    trainer = Trainer(
        model=model,
        # In order: sorted by length, the exercises are learned much later (docs/decisions/003, 004).
        args=TrainingArguments(
            **{
                **common_arguments(worker, config.reader.optimizer, len(rows)),
                "train_sampling_strategy": "sequential",
            },
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )
    train(trainer, worker, config.reader.optimizer)
    result = trained(trainer)
    if worker.main:
        plain = plain_model(AutoModelForTokenClassification, result)
        data = {"name": config.name, "seed": config.seed, "exercises": len(rows)}
        provenance = Provenance(None, None, data, {})
        publish(config.output / "reader", plain, tokenizer, config, "reader", [], provenance)


def labelled(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    exercises: Sequence[tuple[str, Sequence[tuple[int, str]]]],
    improve_turn: str,
) -> dict[str, Any]:
    """`input_ids` and `labels` of a conversation: verdicts at the last token of what they judge, else -100.

    `exercises` are one or two responses with their verdicts; two stand as baseline and candidate do. A
    verdict on a whole response stands at its last token, where a reward model has its score.

    Raises:
        TrainingError: a verdict does not stand at the end of a token.
    """
    ids: list[int] = []
    labels: list[int] = []
    messages = prompt
    for response, verdicts in exercises:
        before, completion = encode_completion(tokenizer, messages, response)
        offsets = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = {end: len(before) + i for i, (_, end) in enumerate(offsets)}
        ids = before + completion
        ends[len(response) + 1] = len(ids) - 1
        labels += [-100] * (len(ids) - len(labels))
        for end, verdict in verdicts:
            if end not in ends:
                raise TrainingError(f"reader: no token of {response!r} ends at character {end}")
            labels[ends[end]] = VERDICTS.index(verdict)
        messages = improver_messages(prompt, response, improve_turn)
    return {"input_ids": ids, "labels": labels}
