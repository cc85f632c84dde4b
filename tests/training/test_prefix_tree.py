"""A tree of sequences is scored as each sequence alone: what is shared, padded or merged changes nothing."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from training.gap_reward import ORDER, GapTrainer, TreeCollator, pad_right, score
from training.losses import gap_loss, pairwise_loss
from training.prefix_tree import TreeScorer, collate, merge

PAD, VOCABULARY = 0, 12
ARCHITECTURES = {"llama": LlamaConfig, "qwen3": Qwen3Config}

# Few different tokens, so that sequences share prefixes, repeat each other and contain one another.
SEQUENCE = st.lists(st.integers(1, 3), min_size=1, max_size=8)
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=4)
TREES = st.lists(st.lists(SEQUENCE, min_size=4, max_size=4), min_size=1, max_size=3)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@cache
def classifier(architecture: str) -> Any:
    """Random weights in double precision; the scores of different sequences differ by about 7."""
    config = ARCHITECTURES[architecture](
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
        pad_token_id=PAD, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # The usual initial weights hardly tell one token from another.
    return model


def alone(model: Any, sequence: list[int]) -> float:
    """The score of one sequence without padding, tree or mask."""
    with torch.no_grad():
        value: float = model(torch.tensor([sequence])).logits[0, 0].item()
    return value


def tree_scores(model: Any, trees: list[list[list[int]]], **changed: torch.Tensor) -> torch.Tensor:
    inputs = collate([merge(sequences) for sequences in trees], PAD) | changed
    with torch.no_grad():
        scores: torch.Tensor = TreeScorer(model)(**inputs)
    return scores


@given(SEQUENCES)
def test_a_tree_holds_every_sequence_and_every_prefix_once(sequences: list[list[int]]) -> None:
    tree = merge(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tree.tokens[i] for i in path] == sequence
        assert [tree.positions[i] for i in path] == list(range(len(sequence)))
    assert len(tree.tokens) == len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        merge([[1], []])


@each_architecture
@settings(max_examples=30)
@given(trees=TREES)
def test_tree_scores_are_those_of_the_separate_sequences(
    architecture: str, trees: list[list[list[int]]]
) -> None:
    model = classifier(architecture)
    expected = torch.tensor([[alone(model, sequence) for sequence in tree] for tree in trees])
    assert torch.allclose(tree_scores(model, trees).float(), expected, atol=1e-4)


@settings(max_examples=30)
@given(trees=TREES, content=st.integers(0, VOCABULARY - 1), amount=st.integers(1, 9))
def test_padding_of_trees_changes_no_score(trees: list[list[list[int]]], content: int, amount: int) -> None:
    """A much longer tree in the batch makes the padding; then any token may stand in it, at any position."""
    model = classifier("qwen3")
    expected = tree_scores(model, trees)
    longer = [*trees, [[4] * 32, [5] * amount, [6], [7]]]
    assert torch.allclose(tree_scores(model, longer)[: len(trees)], expected, atol=1e-4)
    inputs = collate([merge(sequences) for sequences in longer], PAD)
    padding = inputs["input_ids"] == PAD
    assert padding.any()
    scores = tree_scores(
        model,
        longer,
        input_ids=inputs["input_ids"].masked_fill(padding, content),
        position_ids=inputs["position_ids"].masked_fill(padding, amount),
    )
    assert torch.allclose(scores[: len(trees)], expected, atol=1e-4)


def test_the_gradient_of_a_tree_is_that_of_the_separate_sequences() -> None:
    trees = [[[1, 2, 3, 1], [1, 2, 3], [1, 2, 2, 2, 1], [3, 3]], [[2], [2, 2], [2, 1], [2, 1]]]
    weights = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.25, 1.0, -1.0, 2.0]])
    merged, separate = (copy.deepcopy(classifier("qwen3")) for _ in range(2))
    (TreeScorer(merged)(**collate([merge(tree) for tree in trees], PAD)) * weights).sum().backward()
    for tree, row in zip(trees, weights, strict=True):
        for sequence, weight in zip(tree, row, strict=True):
            (separate(torch.tensor([sequence])).logits[0, 0] * weight).backward()
    for (name, one), other in zip(merged.named_parameters(), separate.parameters(), strict=True):
        # The libraries' norms compute in single precision whatever the model's is.
        assert torch.linalg.norm(one.grad - other.grad) < 1e-4 * torch.linalg.norm(other.grad), name


@each_architecture
@settings(max_examples=30)
@given(sequences=st.lists(SEQUENCE, min_size=1, max_size=7), tokens=st.integers(1, 60))
def test_a_score_does_not_depend_on_what_is_scored_beside_it(
    architecture: str, sequences: list[list[int]], tokens: int
) -> None:
    """Any amount of right padding, any size of batch, and the scores come back in the order of the rows."""
    model = classifier(architecture)
    expected = [alone(model, sequence) for sequence in sequences]
    assert score(model, sequences, PAD, tokens) == pytest.approx(expected, abs=1e-4)


def test_the_padding_token_means_nothing() -> None:
    sequences = [[1, 2], [3, 1, 2, 2, 1], [2]]
    model = copy.deepcopy(classifier("qwen3"))
    expected = score(model, sequences, PAD)
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] = 100.0
    assert score(model, sequences, PAD) == pytest.approx(expected, abs=1e-4)
    assert pad_right(sequences, PAD)["attention_mask"].sum(1).tolist() == [2, 5, 1]


@pytest.mark.parametrize("single", [False, True])
def test_the_gap_trainer_puts_every_score_in_its_place(single: bool) -> None:
    """From named columns through tree and batch to the loss: wl, ww, ll, lw are not mixed up."""
    model = classifier("qwen3")
    rows = [
        {"wl": [1, 2, 1, 3], "ww": [1, 1, 1, 3], "ll": [1, 2, 2], "lw": [1, 1, 1, 2]},
        {"wl": [2, 3, 3, 3, 3, 1], "ww": [2, 1, 3, 3], "ll": [2, 3, 1], "lw": [2, 1, 3, 1]},
    ]
    scores = {name: torch.tensor([alone(model, row[name]) for row in rows]) for name in ORDER}
    expected = pairwise_loss(scores["wl"], scores["lw"]) if single else gap_loss(**scores)
    assert expected[0] != pytest.approx(expected[1].item()), "or the order of the pairs would not show"
    trainer = GapTrainer.__new__(GapTrainer)
    trainer.single_term = single
    names = ("wl", "lw") if single else ORDER
    needed = [{name: row[name] for name in reversed(names)} for row in rows]
    for order in (needed, needed[::-1]):
        loss: Any = trainer.compute_loss(TreeScorer(model), TreeCollator(PAD)(order))
        assert loss.item() == pytest.approx(expected.mean().item())
