"""Scores several sequences that share prefixes in one pass, computing every shared token once.

The four inputs of the gap loss are one prompt, two baselines and two candidates after each: as a tree they
have about half of the tokens that they have as four sequences. A token attends to the path from the root to
itself, and its position is its depth, so a decoder computes exactly what it computes for each sequence alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PrefixTree:
    """Sequences merged: tokens (T,), their positions (T,), each sequence's path through them."""

    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]


def merge(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """Merge each sequence with the earlier one that shares its longest prefix.

    Raises:
        ValueError: a sequence is empty.
    """
    tree = PrefixTree([], [], [])
    for number, sequence in enumerate(sequences):
        if not sequence:
            raise ValueError("an empty sequence cannot be scored")
        shared: list[int] = []
        for earlier, path in zip(sequences[:number], tree.paths, strict=True):
            length = _common_prefix(sequence, earlier)
            if length > len(shared):
                shared = path[:length]
        path = [*shared, *range(len(tree.tokens), len(tree.tokens) + len(sequence) - len(shared))]
        tree.tokens.extend(sequence[len(shared) :])
        tree.positions.extend(range(len(shared), len(sequence)))
        tree.paths.append(path)
    return tree


def collate(trees: Sequence[PrefixTree], pad_token_id: int) -> dict[str, Tensor]:
    """Pad trees of equally many sequences.

    Shape: `input_ids`, `position_ids` (batch, T); `attention_mask` (batch, 1, T, T), True where a token
    attends; `ends` (batch, sequences), where each sequence's last token stands.
    """
    longest = max(len(tree.tokens) for tree in trees)
    input_ids = torch.full((len(trees), longest), pad_token_id)
    position_ids = torch.zeros((len(trees), longest), dtype=torch.long)
    # Padding attends to itself: a row without any True would be NaN.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        input_ids[row, :size] = torch.tensor(tree.tokens)
        position_ids[row, :size] = torch.tensor(tree.positions)
        for path in tree.paths:
            index = torch.tensor(path)
            mask[row, index[:, None], index[None, :]] = torch.ones(
                len(path), len(path), dtype=torch.bool
            ).tril()
    ends = torch.tensor([[path[-1] for path in tree.paths] for tree in trees])
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": mask[:, None],
        "ends": ends,
    }


class TreeScorer(nn.Module):
    """A sequence classifier (decoder) that reads prefix trees; `classifier` is the model to publish.

    Saves only what trains: an adapter's base need not stand in every save.
    """

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier
        # By these names accelerate finds the layers that FSDP divides one by one.
        self._no_split_modules = getattr(plain_module(classifier), "_no_split_modules", None)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, ends: Tensor
    ) -> Tensor:
        """Raw logits, (batch, sequences)."""
        model = plain_module(self.classifier)
        hidden = model.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        last = hidden.gather(1, ends[..., None].expand(-1, -1, hidden.shape[-1]))
        scores: Tensor = model.score(last)[..., 0]
        return scores

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return trainable_state(self, super().state_dict(*arguments, **options))

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.classifier.gradient_checkpointing_enable(**options)


class RowScorer(TreeScorer):
    """The same for an encoder, whose tokens see what comes after them: nothing can be shared."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, sequences: int
    ) -> Tensor:
        """Raw logits, (batch, sequences), of rows (batch · sequences, T)."""
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.view(-1, sequences)


def plain_module(model: Any) -> Any:
    """The model that an adapter was put into: its own modules, with the adapter's layers among them."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trainable_state(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a state dictionary trains; all of it where everything does."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for length, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return length
    return min(len(first), len(second))
