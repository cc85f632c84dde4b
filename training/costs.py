"""What training a transformer costs: FLOPs, bytes, and the rate of this machine.

Bytes are counted, seconds are FLOPs over a rate measured here, with factors estimated on small runs
(docs/LOG.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

# Fitted to the stages of the demo on two cores (docs/LOG.md): the share of the matmul rate that arithmetic
# reaches, and what an optimizer step and a decoding step cost for each layer beside their arithmetic.
EFFICIENCY = 0.6
STEP_SECONDS_PER_LAYER = 0.025
DECODE_SECONDS_PER_LAYER = 0.002
# Interpreter and libraries of one worker, and what starting and publishing a stage takes.
PROCESS_BYTES = int(0.8 * 2**30)
# The command itself and the fork server.
SHARED_BYTES = int(0.5 * 2**30)
STAGE_SECONDS = 4.0
# What the first stage waits for: libraries and data.
START_SECONDS = 12.0


@dataclass(frozen=True)
class Shape:
    """What of a transformer decides its cost. `matrices` are the parameters that multiply every token,
    `head` those of them that a reward model has not."""

    parameters: int
    trainable: int
    matrices: int
    head: int
    hidden: int
    layers: int
    attention: int
    mlp: int
    vocabulary: int


@dataclass(frozen=True)
class Work:
    """A stage's tokens: `length` of a sequence as it is padded, `generated` of them in RL."""

    examples: int
    steps: int
    batch: int
    length: float
    generated: float = 0.0


def forward_flops(shape: Shape, tokens: float, length: float) -> float:
    """2·N·T for the matrices and 4·L·A·T·length for scores and their sums over values (A: heads × size)."""
    return tokens * (2 * shape.matrices + 4 * shape.layers * shape.attention * length)


def training_flops(shape: Shape, tokens: float, length: float, *, checkpointing: bool = False) -> float:
    """Forward, and twice that backward (6·N·T); frozen weights need no gradient of their own, which takes
    one forward's worth away, and gradient checkpointing adds one."""
    passes = 3 - (1 - shape.trainable / shape.parameters) + checkpointing
    return passes * forward_flops(shape, tokens, length)


def optimizer_bytes(shape: Shape, kind: str, width: int) -> int:
    """AdamW keeps two moments of each trained weight, Muon one of hidden matrices; `width` bytes each."""
    embeddings = min(shape.trainable, shape.vocabulary * shape.hidden)
    if kind == "muon":
        return width * (shape.trainable + embeddings)
    return 2 * width * shape.trainable


def activation_bytes(shape: Shape, tokens: float, width: int, *, checkpointing: bool = False) -> int:
    """What the backward pass needs of `tokens`: in each layer about 8·hidden + 6·A + 4·mlp values.

    With gradient checkpointing each layer's input, and all of one layer.
    """
    layer = 8 * shape.hidden + 6 * shape.attention + 4 * shape.mlp
    values = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    return int(tokens * values * width)


def logits_bytes(tokens: float, vocabulary: int) -> int:
    """tokens × V: the logits, their float32 log-softmax and its gradient."""
    return int(3 * 4 * tokens * vocabulary)


def decode_seconds(shape: Shape, rows: int, tokens: float, context: float, rate: float) -> float:
    """Generation, token by token: arithmetic of `rows` sequences, and a cost for each layer of each step."""
    arithmetic = forward_flops(shape, rows * tokens, context) / (EFFICIENCY * rate)
    return arithmetic + tokens * shape.layers * DECODE_SECONDS_PER_LAYER


def matmul_rate(rows: int, inner: int, columns: int, seconds: float = 1.0) -> float:
    """FLOPs a second of one thread (or one accelerator) on a product (rows, inner) × (inner, columns).

    A thread's seconds are those of its processor: what else the machine does now is not what it will do then.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = time.monotonic if device == "cuda" else time.thread_time
        done, started = 0, clock()
        while (elapsed := clock() - started) < seconds:
            for _ in range(10):
                torch.mm(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            done += 10
    finally:
        torch.set_num_threads(threads)
    return done * 2 * rows * inner * columns / elapsed
