"""The losses against hand-computed values and the laws that the method relies on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.losses import gap_loss, pairwise_loss

FINITE = st.floats(-20, 20)
# Differences so small that a raise still shows in the fifteenth digit of the loss.
MODERATE = st.floats(-5, 5)
RAISE = st.floats(0.1, 5)
SCORES = st.tuples(FINITE, FINITE, FINITE, FINITE)


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


@given(SCORES, FINITE)
def test_a_constant_on_all_scores_changes_nothing(scores: tuple[float, ...], shift: float) -> None:
    """Why a raw gap of 0 means nothing, and a gap must be centred."""
    moved = gap_loss(*tensors(*(s + shift for s in scores)))
    assert torch.allclose(moved, gap_loss(*tensors(*scores)))
    moved = pairwise_loss(*tensors(*(s + shift for s in scores[:2])))
    assert torch.allclose(moved, pairwise_loss(*tensors(*scores[:2])))


@given(
    st.lists(SCORES, min_size=2, max_size=5).flatmap(
        lambda rows: st.tuples(st.just(rows), st.permutations(range(len(rows))))
    )
)
def test_a_pair_costs_the_same_wherever_it_stands_in_the_batch(
    drawn: tuple[list[tuple[float, ...]], list[int]],
) -> None:
    rows, order = drawn
    batch = torch.tensor(rows, dtype=torch.float64)
    for loss, columns in ((gap_loss, batch), (pairwise_loss, batch[:, :2])):
        losses, permuted = loss(*columns.unbind(1)), loss(*columns[order].unbind(1))
        assert losses.shape == (len(rows),)
        assert torch.allclose(permuted, losses[order])
        assert torch.allclose(permuted.mean(), losses.mean())
        for row, alone in zip(columns, losses, strict=True):
            assert torch.allclose(loss(*row[:, None]), alone), "and whatever stands beside it"


@given(st.tuples(MODERATE, MODERATE, MODERATE, MODERATE), RAISE)
def test_a_higher_score_of_the_better_response_costs_less(scores: tuple[float, ...], more: float) -> None:
    """Beside the slopes below: also over a step of any size, and to either side."""
    wl, ww, ll, lw = scores
    loss = gap_loss(*tensors(*scores))
    assert gap_loss(*tensors(wl + more, ww, ll, lw)) < loss < gap_loss(*tensors(wl, ww, ll, lw + more))
    assert gap_loss(*tensors(wl, ww, ll, lw - more)) < loss < gap_loss(*tensors(wl - more, ww, ll, lw))
    pair = pairwise_loss(*tensors(wl, lw))
    assert pairwise_loss(*tensors(wl + more, lw)) < pair < pairwise_loss(*tensors(wl, lw + more))


@given(SCORES)
def test_swapping_the_responses_costs_what_the_order_was_worth(scores: tuple[float, ...]) -> None:
    """−log σ(d) + log σ(−d) = −d, so a wrong label costs 3·(wl − lw) more: each difference counts once."""
    wl, ww, ll, lw = tensors(*scores)
    assert torch.allclose(gap_loss(wl, ww, ll, lw) - gap_loss(lw, ll, ww, wl), -3 * (wl - lw))
    assert torch.allclose(pairwise_loss(wl, lw) - pairwise_loss(lw, wl), -(wl - lw))
    assert torch.allclose(gap_loss(wl, ww, ll, lw), gap_loss(wl, ll, ww, lw)), "ww and ll are alike"


@given(SCORES)
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
