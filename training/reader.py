"""The reader: a small model that has learned to read a response against its prompt (token classification).

A pretrained model knows whether a text says what another says; a reward model that starts from it has only
to learn what people prefer. A model from scratch must learn both from preference pairs, and at this size
never finds out that a value differs from the prompt's. So the demo's reward models start from this one. Its
exercises say what holds (stated so, asked for, said before, all said), never what is better: that comes from
the pairs alone. In the pipeline it stands before the pointwise reward. Beyond the paper.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from training.chat import encode_completion, improver_messages
from training.checkpoint import Provenance, publish
from training.data import Message
from training.errors import TrainingError
from training.helpdesk import make_question
from training.models import Trained, load_tokenizer, plain_model, scratch_token_classifier
from training.paths import base_source
from training.synthetic import reading_exercise
from training.trainers import Reporter, common_arguments, train, trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.config import RunConfig
    from training.runtime import Worker

VERDICTS = ("right", "wrong", "unasked", "again", "complete", "one missing", "more missing")

COUNTS = 0.9
"""A reader can count when it says rightly of so many held-out responses how much is missing."""
HELD_OUT = 640


def train_reader(worker: Worker) -> None:
    """Train and publish `reader`: the first attempt that counts, or else the one that does so best."""
    config = worker.config
    assert config.reader is not None
    tokenizer = load_tokenizer(base_source(config))
    held_out = _exercises(config, tokenizer, f"reader-{config.seed}-held-out", HELD_OUT)
    attempts: list[tuple[float, int, Trained]] = []
    for attempt in range(1, config.reader.attempts + 1):
        # Other weights to start from, and more time: weights that have not found counting when the learning
        # rate falls hardly find it by going on. An attempt that a kill interrupted goes on from its last
        # save, and one that was finished is only tested again.
        seed = config.seed if attempt == 1 else f"{config.seed}-{attempt}"
        count = config.reader.exercises * 2 ** (attempt - 1)
        rows = _exercises(config, tokenizer, f"reader-{seed}", count)
        begun = config.seed + 1000 * (attempt - 1)
        model = scratch_token_classifier(config, tokenizer, tokenizer.model_max_length, VERDICTS, begun)
        part = worker if attempt == 1 else replace(worker, part=f"attempt-{attempt}")
        trainer = _trainer(part, model, tokenizer, rows, held_out)
        train(trainer, part, config.reader.optimizer)
        counts = trainer.evaluate()["eval_counts"]
        attempts.append((counts, count, trained(trainer)))
        if counts >= COUNTS:
            break
    if worker.main:
        counts, count, best = max(attempts, key=lambda one: one[0])
        plain = plain_model(AutoModelForTokenClassification, best)
        data = {"name": config.name, "seed": config.seed, "exercises": count}
        provenance = Provenance(None, None, data, {"counts": counts})
        publish(config.output / "reader", plain, tokenizer, config, "reader", [], provenance)


def _exercises(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, seed: str, count: int
) -> list[dict[str, Any]]:
    assert config.reader is not None
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        question = make_question(rng, 0.05)
        # As the pointwise reward will read, and as the gap reward will, by turns: a batch pads less.
        number = 1 + i // config.reader.optimizer.batch % 2
        exercises = [reading_exercise(question, rng) for _ in range(number)]
        prompt = [Message(role="user", content=question.text)]
        rows.append(labelled(tokenizer, prompt, exercises, config.improve_turn))
    return rows


def _trainer(
    worker: Worker,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
) -> Trainer:
    assert worker.config.reader is not None
    return Trainer(
        model=model,
        # In order: sorted by length, the exercises are learned much later (docs/decisions/003, 004).
        args=TrainingArguments(
            **{
                **common_arguments(worker, worker.config.reader.optimizer, len(rows)),
                "train_sampling_strategy": "sequential",
            },
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        compute_metrics=_counts,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )


def _counts(prediction: EvalPrediction) -> dict[str, float]:
    """The share of verdicts on how much is missing that are right; (n, tokens, verdicts) and (n, tokens)."""
    said, true = prediction.predictions.argmax(-1), prediction.label_ids
    judged = true >= VERDICTS.index("complete")
    return {"counts": float((said == true)[judged].mean())}


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
