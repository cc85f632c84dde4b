"""Starts a model from scratch with the circuits that reading a context takes, instead of waiting for them.

Copying from a context, and noticing that a word does or does not occur in it, need two kinds of heads: heads
that look at the tokens just before, and heads that look for the like of a token elsewhere. A small model
finds them late or never, because each is of use only once the other is there. Here they are in place in every
layer from the first step on; training then uses, bends or drops them (docs/decisions/003).

Grown from mimetic initialization (Trockman and Kolter, arXiv 2305.09828) and the circuits of induction
(Olsson et al., arXiv 2209.11895).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_SIZE = 64  # the smallest that vLLM's attention kernels take on every platform
# Rotations slow enough that a token is still recognized by its like a whole conversation away.
ROPE_THETA = 1e6

# Muon moves every matrix by the same amount a step: what is to last is written several times larger than
# usual. (Queries and keys are normalized, so their size changes nothing else.)
_EMBEDDING_STD = 0.1
_QUERY_SCALE = 6.0
# Scores of queries and keys grow by its square; a like or a neighbour then gets most of a head's attention.
_SHARPNESS = 1.4
# Added to one coordinate of every embedding: it shifts all logits alike, which changes no probability, and
# gives the positional heads something that is the same in every token.
_CONSTANT = 0.2
_POSITION_WEIGHT = 6.0
# Rotation pairs, fastest first: those that place a neighbour, and those that tell a token from itself.
_NEIGHBOUR_PAIRS = 6
_SELF_PAIRS = 9
# How much of what a head sees it adds to the residual stream.
_COPY_GAIN = 0.2


@torch.no_grad()
def start_with_induction(model: PreTrainedModel) -> None:
    """Rewrite the attention and the embeddings of a fresh Llama or Qwen3 of any number of heads.

    In each layer the first head attends to the token before, the second to tokens like its own, the third to
    the token before the last; the others stay random. All hand on what they see: W_O·W_V ≈ gain · identity.
    """
    embeddings = model.get_input_embeddings().weight
    embeddings.mul_(_EMBEDDING_STD / model.config.initializer_range)
    embeddings[:, 0] = _CONSTANT
    for layer in model.model.layers:
        attention = layer.self_attn
        queries = attention.q_proj.weight.view(-1, HEAD_SIZE, attention.q_proj.weight.shape[1])
        keys = attention.k_proj.weight.view_as(queries)
        for head, start in enumerate((_attend_before, _attend_alike, _attend_before)[: len(queries)]):
            queries[head].mul_(_QUERY_SCALE)
            keys[head].mul_(_QUERY_SCALE)
            start(queries[head], keys[head], 1 + head // 2)
        for norm in ("q_norm", "k_norm"):
            if hasattr(attention, norm):  # Qwen3 has them, Llama does not
                getattr(attention, norm).weight.mul_(_SHARPNESS)
        value, output = attention.v_proj.weight, attention.o_proj.weight
        value.normal_(std=value.shape[1] ** -0.5)
        output.copy_(_COPY_GAIN * value.T)


def _attend_before(query: torch.Tensor, key: torch.Tensor, distance: int) -> None:
    """Shapes: both (head size, hidden). Adds Σ cos(θ · (offset − distance)) of the fast pairs."""
    half = HEAD_SIZE // 2
    for pair in range(_NEIGHBOUR_PAIRS):
        angle = distance * ROPE_THETA ** (-pair / half)
        query[pair, 0] += _POSITION_WEIGHT
        key[pair, 0] += _POSITION_WEIGHT * math.cos(angle)
        key[pair + half, 0] += _POSITION_WEIGHT * math.sin(angle)


def _attend_alike(query: torch.Tensor, key: torch.Tensor, _: int) -> None:
    """Shapes: both (head size, hidden). Equal projections, but the fast pairs speak against offset 0.

    Else every token would find itself first, and one whose like occurs elsewhere would look like any other.
    """
    half = HEAD_SIZE // 2
    key.copy_(query)
    key[:_SELF_PAIRS] *= -1
    key[half : half + _SELF_PAIRS] *= -1
