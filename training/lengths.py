"""Keeps to the length budget: which pairs fit, and whether the model has room for what the budget allows.

In the pipeline every stage reads its part of the data through `fitting_pairs`, because only there is the
tokenizer known. Nothing is cut and nothing vanishes: a pair that is too long is left out, counted in
metrics.jsonl and told on the stage's line.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from training.chat import encode, encode_completion, gap_messages, improver_messages
from training.checks import positions
from training.data import Message, PreferencePair
from training.errors import ConfigError, DataError
from training.prepare import read_part
from training.trainers import append_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from training.config import LengthBudget, OptimizerConfig, RunConfig
    from training.runtime import Worker


def fitting_pairs(
    worker: Worker,
    tokenizer: PreTrainedTokenizerBase,
    part: str,
    *,
    enough: int | None = None,
    shuffled: bool = False,
    report: bool = True,
) -> list[PreferencePair]:
    """The pairs of a part whose prompt, y_w (a response) and y_l (a reference) keep to the length budget.

    Prompts are measured as the chat template renders them, responses with their end of turn. With `enough`,
    no more pairs are measured than it takes to find that many; `shuffled` draws them in a seeded order.

    Raises:
        DataError: no pair fits; the message says how long the shortest are.
    """
    pairs = read_part(worker.config, part)
    if shuffled:
        random.Random(worker.config.seed).shuffle(pairs)
    kept: list[PreferencePair] = []
    lengths: list[tuple[int, int, int]] = []
    wanted = len(pairs) if enough is None else min(enough, len(pairs))
    while len(lengths) < len(pairs) and len(kept) < wanted:
        more = pairs[len(lengths) : len(lengths) + max(wanted - len(kept), 64)]
        measured = _lengths(tokenizer, more)
        kept += [pair for pair, row in zip(more, measured, strict=True) if _fits(row, worker.config.length)]
        lengths += measured
    if not kept:
        shortest = [min(column) for column in zip(*lengths, strict=True)]
        raise DataError(
            f"{worker.stage}: none of the {len(pairs)} pairs of {part} keeps to the length budget; "
            f"the shortest prompt, y_w and y_l have {shortest[0]}, {shortest[1]} and {shortest[2]} tokens",
            advice="Raise length.prompt, length.response or length.reference, or give shorter data",
        )
    if report and worker.main:
        append_metrics(worker, {"part": part, "pairs": len(lengths), "too_long": len(lengths) - len(kept)})
    return kept[:wanted]


def golden_pairs(worker: Worker, tokenizer: PreTrainedTokenizerBase) -> list[PreferencePair]:
    """The three held-out pairs of a checkpoint's golden samples."""
    return fitting_pairs(worker, tokenizer, "heldout", enough=3, report=False)


def reward_pairs(
    worker: Worker, tokenizer: PreTrainedTokenizerBase, optimizer: OptimizerConfig
) -> list[PreferencePair]:
    """The pairs that a reward model trains on: as many as its steps see, or all when it counts epochs.

    Raises:
        DataError: no pair fits.
    """
    enough = optimizer.steps * optimizer.batch if optimizer.steps else None
    return fitting_pairs(worker, tokenizer, "reward", enough=enough, shuffled=True)


def check_room(config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: Any) -> None:
    """Say before training, not after it, when the budget does not fit the model.

    Raises:
        ConfigError: prompt, reference, response and the template between them need more positions.
    """
    empty = improver_messages([Message(role="user", content="")], "", config.improve_turn)
    template = sum(map(len, encode_completion(tokenizer, empty, "")))
    _require_room(config.length, config.length.reference, template, positions(model_config), "the model")


def check_reward_room(config: RunConfig, tokenizer: PreTrainedTokenizerBase, model_config: Any) -> None:
    """The same for `gap_reward.path`, which reads prompt, baseline and candidate with a tokenizer of its own.

    Raises:
        ConfigError: they need more positions.
    """
    empty = gap_messages([Message(role="user", content="")], "", "", config.gap_turn)
    template, baseline = len(encode(tokenizer, [empty])[0]), config.length.reference if config.gap_turn else 0
    _require_room(config.length, baseline, template, positions(model_config), "gap_reward.path")


def _require_room(budget: LengthBudget, reference: int, template: int, limit: int | None, model: str) -> None:
    needed = budget.prompt + reference + budget.response + template
    if limit is not None and needed > limit:
        raise ConfigError(
            f"length: prompt {budget.prompt} + reference {reference} + response {budget.response} "
            f"and {template} tokens of chat template make {needed}, and {model} has {limit} positions; "
            "lower the budget"
        )


def scratch_positions(budget: LengthBudget) -> int:
    """Positions of a model from scratch: feedback and rewriting (Self-Refine) make the longest conversations,
    four turns, each a response long."""
    return -(-(budget.prompt + budget.reference + 3 * budget.response + 32) // 64) * 64


def _lengths(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]
) -> list[tuple[int, int, int]]:
    """Tokens of prompt, y_w and y_l of each pair."""
    prompts = [len(ids) for ids in encode(tokenizer, [list(pair.prompt) for pair in pairs])]
    chosen, rejected = (
        [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    return list(zip(prompts, chosen, rejected, strict=True))


def _fits(lengths: tuple[int, int, int], budget: LengthBudget) -> bool:
    limits = (budget.prompt, budget.response, budget.reference)
    return all(n <= limit for n, limit in zip(lengths, limits, strict=True))
