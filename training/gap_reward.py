"""The gap reward r_gap(x, y1, y2): how much better candidate y1 is than baseline y2 (METHOD §2).

In the pipeline it stands after the improver's SFT and the pointwise reward, and starts from the weights of
one of them (`gap_reward.start`; both are better starts than the base model). Its loss reads four scores of
one pair: (w,l), (w,w), (l,l), (l,w).

TRL has no trainer for a loss over four sequences, so this is transformers' Trainer with its public
`compute_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments

from training.chat import encode, gap_messages
from training.checks import positions
from training.contrast import contrast_pairs
from training.errors import DataError
from training.lengths import reward_pairs
from training.losses import gap_loss, pairwise_loss
from training.models import is_encoder, load_reading_tokenizer, reward_model_to_train
from training.paths import gap_reward_names, gap_reward_source
from training.prefix_tree import RowScorer, TreeScorer, collate, merge, plain_module
from training.release import release_reward_model
from training.runtime import Worker
from training.trainers import Reporter, common_arguments, train, trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.data import Message

ORDER = ("wl", "ww", "ll", "lw")  # candidate first, baseline second
TOKENS_A_BATCH = 16_384


class GapTrainer(Trainer):  # type: ignore[misc]
    """Its model is a scorer of prefix_tree.py; a batch holds the sequences of each pair, in `ORDER`: all
    four, or the two that a single term compares."""

    single_term = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        scores = model(**inputs)
        loss = (pairwise_loss if self.single_term else gap_loss)(*scores.float().unbind(1)).mean()
        return (loss, scores) if return_outputs else loss


class TreeCollator:
    """Merges the sequences of each pair, so that their shared prefixes are computed once."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate([merge(sequences_of(row)) for row in rows], self.pad_token_id)


class RowCollator(TreeCollator):
    """Leaves them apart, for encoders."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sequences = [sequence for row in rows for sequence in sequences_of(row)]
        return {**pad_right(sequences, self.pad_token_id), "sequences": len(sequences) // len(rows)}


def sequences_of(row: dict[str, Any]) -> list[list[int]]:
    """Those that a row of the data set has, in `ORDER`."""
    return [row[name] for name in ORDER if name in row]


def pad_right(sequences: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both (batch, longest)."""
    longest = max(map(len, sequences))
    input_ids = torch.tensor([[*s, *[pad_token_id] * (longest - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return {"input_ids": input_ids, "attention_mask": mask}


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    tokens: int = TOKENS_A_BATCH,
) -> list[float]:
    """Raw logits of encoded conversations, in their order (batches of like length, of at most `tokens`)."""
    options = {} if is_encoder(model) else {"use_cache": False}
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    model.eval()
    while order:
        # The longest of a batch decides what the others are padded to.
        size = max(1, tokens // max(1, len(sequences[order[-1]])))
        indices, order = order[-size:], order[:-size]
        inputs = pad_right([sequences[i] for i in indices], pad_token_id)
        logits = model(**{k: v.to(model.device) for k, v in inputs.items()}, **options).logits[:, 0]
        for i, value in zip(indices, logits.float().tolist(), strict=True):
            scores[i] = value
    return scores


def gap_scores(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Sequence[Message], str, str]],
    improve_turn: str | None,
) -> list[float]:
    """Mean r_gap of the ensemble for rows (prompt, candidate, baseline).

    A model of few positions and with a tokenizer of its own (an encoder) may find a response longer than the
    one that wrote it: it then does not read the candidate's end.

    Raises:
        DataError: prompt and baseline alone have more tokens than it can read.
    """
    encoded = encode(
        tokenizer, [gap_messages(x, candidate, baseline, improve_turn) for x, candidate, baseline in rows]
    )
    limit = positions(models[0].config) or math.inf
    for i, (ids, (_, candidate, _)) in enumerate(zip(encoded, rows, strict=True)):
        over = len(ids) - limit
        if over > 0:
            if over >= len(tokenizer(candidate, add_special_tokens=False)["input_ids"]):
                raise DataError(
                    f"the gap reward has {limit} positions, and a conversation of {len(ids)} tokens has no "
                    "room in them without its last response",
                    advice="Lower length.prompt, reference or response",
                )
            encoded[i] = ids[: int(limit)]
    each = [score(model, encoded, tokenizer.pad_token_id) for model in models]
    return [sum(values) / len(values) for values in zip(*each, strict=True)]


def train_gap_reward(worker: Worker) -> None:
    """Train and publish the gap reward that the stage is named after."""
    config, gap = worker.config, worker.config.gap_reward
    member = gap_reward_names(config).index(worker.stage)
    seed = config.seed + member
    source = gap_reward_source(config, worker.stage)
    tokenizer, model = load_reading_tokenizer(source), reward_model_to_train(config, source, seed)
    encoder = is_encoder(plain_module(model))
    pairs = reward_pairs(worker, tokenizer, gap.optimizer)
    pairs += contrast_pairs(pairs, int(gap.contrast * len(pairs)), seed)
    # With the candidate alone wl = ww and ll = lw: the five terms would be three of the one, and constants.
    single = gap.loss != "five_terms"
    order = ("wl", "lw") if single else ORDER
    columns: dict[str, Any] = {}
    for name in order:
        texts = [
            gap_messages(
                pair.prompt,
                pair.chosen if name[0] == "w" else pair.rejected,
                pair.chosen if name[1] == "w" else pair.rejected,
                config.gap_turn,
            )
            for pair in pairs
        ]
        columns[name] = encode(tokenizer, texts)
    rows = zip(*(columns[name] for name in order), strict=True)
    columns["length"] = [max(map(len, row)) if encoder else len(merge(row).tokens) for row in rows]
    arguments = common_arguments(worker, gap.optimizer, len(pairs))
    scorer = (RowScorer if encoder else TreeScorer)(model)
    trainer = GapTrainer(
        model=scorer,
        args=TrainingArguments(
            **{**arguments, "seed": seed, "train_sampling_strategy": "group_by_length"},
            length_column_name="length",
        ),
        train_dataset=Dataset.from_dict(columns),
        data_collator=(RowCollator if encoder else TreeCollator)(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[Reporter(worker)],
    )
    trainer.single_term = single
    train(trainer, worker, gap.optimizer)
    release_reward_model(worker, trained(trainer).part("classifier"), tokenizer, "gap_reward", source, seed)
