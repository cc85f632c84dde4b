"""How the attention of a model from scratch starts: as copying, or with the circuits of induction.

Both hand on what a head sees, so that copying is learned in a third of the steps. With `copying`, half of the
heads attend to tokens like their own. That serves where a value is known by its kind, as at the help desk.

Copying any word, and noticing that a word does not occur in the context, needs more: heads that look at the
tokens just before, and heads that look for the like of a token elsewhere. A small model finds them late or
never, because each is of use only once the other is there. `induction` puts them in place in every layer;
training then uses, bends or drops them (docs/decisions/003).

Grown from mimetic initialization (Trockman and Kolter, arXiv 2305.09828) and the circuits of induction
(Olsson et al., arXiv 2209.11895).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

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
# How much of what it sees a head adds to the residual stream.
_COPY_GAIN = 0.2


@torch.no_grad()
def start_attention(model: PreTrainedModel, start: Literal["copying", "induction"]) -> None:
    """Rewrite the attention (and for `induction` the embeddings) of a fresh Llama or Qwen3.

    Any number of heads will do. In each layer, `copying` makes the first half of them attend to tokens like
    their own (W_K = W_Q); `induction` makes the first attend to the token before, the second to tokens like
    its own, the third to the token before the last, and leaves the others random.
    """
    if start == "induction":
        _separate(model)
    for layer in model.model.layers:
        attention = layer.self_attn
        queries = attention.q_proj.weight.view(-1, HEAD_SIZE, attention.q_proj.weight.shape[1])
        keys = attention.k_proj.weight.view_as(queries)
        if start == "copying":
            half = len(queries) // 2
            keys[:half] = queries[:half]
        else:
            _start_induction(attention, queries, keys)
        value, output = attention.v_proj.weight, attention.o_proj.weight
        value.normal_(std=value.shape[1] ** -0.5)
        output.copy_(_COPY_GAIN * value.T)


def _separate(model: PreTrainedModel) -> None:
    """Embeddings far enough apart that values of one kind do not become one, with a constant in each."""
    embeddings = model.get_input_embeddings().weight
    embeddings.mul_(_EMBEDDING_STD / model.config.initializer_range)
    embeddings[:, 0] = _CONSTANT


def _start_induction(attention: torch.nn.Module, queries: torch.Tensor, keys: torch.Tensor) -> None:
    """Shapes: both (heads, head size, hidden)."""
    for head, start in enumerate((_attend_before, _attend_alike, _attend_before)[: len(queries)]):
        queries[head].mul_(_QUERY_SCALE)
        keys[head].mul_(_QUERY_SCALE)
        start(queries[head], keys[head], 1 + head // 2)
    for norm in ("q_norm", "k_norm"):
        if hasattr(attention, norm):  # Qwen3 has them, Llama does not
            getattr(attention, norm).weight.mul_(_SHARPNESS)


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
