"""Keeps to the length budget: which pairs fit, and whether the model has room for what the budget allows.

In the pipeline every stage reads its part of the data through `fitting_pairs`, because only there is the
tokenizer known. Nothing is cut and nothing vanishes: a pair that is too long is left out, counted in
metrics.jsonl and told on the stage's line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.chat import encode, encode_completion, improver_messages
from training.data import Message, PreferencePair
from training.errors import ConfigError, DataError
from training.prepare import read_part
from training.trainers import append_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.config import RunConfig
    from training.runtime import Worker


def fitting_pairs(
    worker: Worker, tokenizer: PreTrainedTokenizerBase, part: str, *, report: bool = True
) -> list[PreferencePair]:
    """The pairs of a part whose prompt, y_w (a response) and y_l (a reference) keep to the length budget.

    Prompts are measured as the chat template renders them, responses with their end of turn.

    Raises:
        DataError: no pair fits; the message says how long the shortest are.
    """
    pairs, budget = read_part(worker.config, part), worker.config.length
    limits = (budget.prompt, budget.response, budget.reference)
    lengths = list(
        zip(
            [len(ids) for ids in encode(tokenizer, [list(pair.prompt) for pair in pairs])],
            _response_lengths(tokenizer, [pair.chosen for pair in pairs]),
            _response_lengths(tokenizer, [pair.rejected for pair in pairs]),
            strict=True,
        )
    )
    fits = [all(n <= limit for n, limit in zip(row, limits, strict=True)) for row in lengths]
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    if not kept:
        shortest = [min(column) for column in zip(*lengths, strict=True)]
        raise DataError(
            f"{worker.stage}: none of the {len(pairs)} pairs of {part} keeps to the length budget; "
            f"the shortest prompt, y_w and y_l have {shortest[0]}, {shortest[1]} and {shortest[2]} tokens",
            advice="Raise length.prompt, length.response or length.reference, or give shorter data",
        )
    if report and worker.main:
        append_metrics(worker, {"part": part, "pairs": len(pairs), "too_long": len(pairs) - len(kept)})
    return kept


def golden_pairs(worker: Worker, tokenizer: PreTrainedTokenizerBase) -> list[PreferencePair]:
    """The three held-out pairs of a checkpoint's golden samples."""
    return fitting_pairs(worker, tokenizer, "heldout", report=False)[:3]


def check_room(config: RunConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Say before training, not after it, when the budget does not fit the model.

    Raises:
        ConfigError: prompt, reference, response and the template between them need more positions.
    """
    empty = improver_messages([Message(role="user", content="")], "", config.improve_turn)
    template = sum(map(len, encode_completion(tokenizer, empty, "")))
    budget, limit = config.length, int(model.config.get_text_config().max_position_embeddings)
    needed = budget.prompt + budget.reference + budget.response + template
    if needed > limit:
        raise ConfigError(
            f"length: prompt {budget.prompt} + reference {budget.reference} + response {budget.response} "
            f"and {template} tokens of chat template make {needed}, and the model has {limit} positions; "
            "lower the budget"
        )


def _response_lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
