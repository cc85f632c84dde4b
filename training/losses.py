"""Losses as pure tensor functions; each docstring carries its equation (METHOD §2, arXiv 2310.00898 §3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pairwise_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry: L = −log σ( r(x,y_w) − r(x,y_l) ).

    Shape: both (batch,); returns (batch,).
    """
    return -logsigmoid(chosen - rejected)


def gap_loss(wl: Tensor, ww: Tensor, ll: Tensor, lw: Tensor) -> Tensor:
    """The five-term loss of the gap reward; 5·ln 2 when all four scores are equal.

    The wanted order is wl ≥ ww ≈ ll ≥ lw, where wl = r_gap(x, y_w, y_l): candidate first, baseline second.
    L = −Σ log σ(a − b) over (a, b) in (wl,ww), (wl,ll), (wl,lw), (ww,lw), (ll,lw).

    Only differences count, so adding a constant to all four scores changes nothing: r_gap(y, y) = 0 is not
    enforced, and a score must be centred before it means anything (calibrate.py).

    Shape: all (batch,); returns (batch,).
    """
    terms = torch.stack([wl - ww, wl - ll, wl - lw, ww - lw, ll - lw])
    return -logsigmoid(terms).sum(0)
