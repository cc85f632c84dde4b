"""The losses against hand-computed values and the laws that the method relies on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.losses import gap_loss, pairwise_loss

FINITE = st.floats(-20, 20)


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


def test_equal_scores_cost_five_times_ln_2() -> None:
    assert gap_loss(*tensors(3, 3, 3, 3)).item() == pytest.approx(5 * math.log(2))
    assert pairwise_loss(*tensors(3, 3)).item() == pytest.approx(math.log(2))


def test_the_five_terms_by_hand() -> None:
    wl, ww, ll, lw = 2.0, 0.5, 0.25, -1.0
    expected = sum(map(minus_log_sigmoid, (wl - ww, wl - ll, wl - lw, ww - lw, ll - lw)))
    assert gap_loss(*tensors(wl, ww, ll, lw)).item() == pytest.approx(expected)
    assert pairwise_loss(*tensors(2, 0.5)).item() == pytest.approx(minus_log_sigmoid(1.5))


@given(st.tuples(FINITE, FINITE, FINITE, FINITE), FINITE)
def test_a_constant_on_all_scores_changes_nothing(scores: tuple[float, ...], shift: float) -> None:
    """Why a raw gap of 0 means nothing, and a gap must be centred."""
    moved = gap_loss(*tensors(*(s + shift for s in scores)))
    assert torch.allclose(moved, gap_loss(*tensors(*scores)))


@given(st.lists(st.tuples(FINITE, FINITE, FINITE, FINITE), min_size=2, max_size=5))
def test_a_pair_costs_the_same_wherever_it_stands_in_the_batch(rows: list[tuple[float, ...]]) -> None:
    batch = torch.tensor(rows, dtype=torch.float64)
    turned = batch.flip(0)
    assert torch.allclose(gap_loss(*turned.unbind(1)), gap_loss(*batch.unbind(1)).flip(0))


@given(st.tuples(FINITE, FINITE, FINITE, FINITE))
def test_the_loss_pulls_every_score_in_the_wanted_direction(scores: tuple[float, ...]) -> None:
    """wl up and lw down, always; ww and ll up exactly when they are nearer to lw than to wl."""
    wl, ww, ll, lw = (t.requires_grad_() for t in tensors(*scores))
    gap_loss(wl, ww, ll, lw).sum().backward()  # type: ignore[no-untyped-call]
    slopes = [t.grad.item() for t in (wl, ww, ll, lw) if t.grad is not None]
    assert slopes[0] < 0 < slopes[3]
    for slope, score in zip(slopes[1:3], scores[1:3], strict=True):
        middle = (scores[0] + scores[3]) / 2
        if abs(score - middle) > 1e-6:
            assert (slope < 0) == (score < middle)
