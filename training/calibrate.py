"""Calibrates the gap reward: P(candidate is better) = σ(a·g + b), and measures its error (METHOD §2).

In the pipeline it stands between the gap reward and RL, which an unfit one does not start (diagnostics.py).
Half of the held-out pairs fits a and b, the other half measures the error that the manifest states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.checkpoint import update_manifest
from training.diagnostics import fitness, require_fit
from training.gap_reward import gap_scores
from training.lengths import fitting_pairs
from training.models import load_reading_tokenizer, load_reward_model
from training.paths import gap_reward_names
from training.runtime import Progress, Worker
from training.trainers import append_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.data import Message, PreferencePair

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """a, b of σ(a·g + b); the expected calibration error on `n` other pairs."""

    a: float
    b: float
    ece: float
    n: int


def centred_gaps(
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Sequence[Message], str, str]],
    improve_turn: str | None,
    centering: Literal["self", "antisymmetric"],
) -> list[float]:
    """g of rows (prompt, new, old).

    self: r_gap(x, new, old) − r_gap(x, old, old); antisymmetric: ½ (r_gap(x, new, old) − r_gap(x, old, new)).
    """
    other = _identical(rows) if centering == "self" else _turned(rows)
    forward, backward = (gap_scores(models, tokenizer, each, improve_turn) for each in (rows, other))
    return _centred(forward, backward, centering)


def _centred(
    forward: Sequence[float], backward: Sequence[float], centering: Literal["self", "antisymmetric"]
) -> list[float]:
    factor = 1.0 if centering == "self" else 0.5
    return [factor * (f - r) for f, r in zip(forward, backward, strict=True)]


def _turned(rows: Sequence[tuple[Sequence[Message], str, str]]) -> list[tuple[Sequence[Message], str, str]]:
    return [(x, old, new) for x, new, old in rows]


def _identical(
    rows: Sequence[tuple[Sequence[Message], str, str]],
) -> list[tuple[Sequence[Message], str, str]]:
    return [(x, old, old) for x, _, old in rows]


def fit(gaps: Sequence[float], better: Sequence[bool]) -> tuple[float, float]:
    """Maximum-likelihood a and b by Newton's method.

    A weak prior keeps them finite when the classes separate.
    """
    a, b, ridge = 1.0, 0.0, 1e-3
    for _ in range(100):
        ga = ridge * a
        gb = haa = hab = hbb = 0.0
        haa = ridge
        for g, y in zip(gaps, better, strict=True):
            p = sigmoid(a * g + b)
            ga += (p - y) * g
            gb += p - y
            w = max(p * (1 - p), 1e-9)
            haa += w * g * g
            hab += w * g
            hbb += w
        determinant = haa * hbb - hab * hab
        if determinant <= 1e-12:
            break
        da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        a, b = a - da, b - db
        if abs(da) + abs(db) < 1e-9:
            break
    return a, b


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Σ over ten equal-width bins of (share of the bin) · |mean probability − mean outcome|."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, y in zip(probabilities, outcomes, strict=True):
        bins[min(int(p * BINS), BINS - 1)].append((p, y))
    return sum(abs(sum(p for p, _ in bin) - sum(y for _, y in bin)) for bin in bins) / len(probabilities)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def calibrate(worker: Worker) -> dict[str, Any]:
    """Fit on held-out pairs, write `gap` into the manifest of every gap reward; return the figures.

    Raises:
        UnfitReward: one of them is not fit for RL, and `gap_reward.require_fit` is on.
    """
    config = worker.config
    if not worker.main:
        return {}
    names = gap_reward_names(config)
    # The members of an ensemble share one tokenizer, so the first one's decides which pairs fit.
    pairs = fitting_pairs(worker, load_reading_tokenizer(config.output / names[0]), "heldout")
    rows, better = orders(pairs)
    half = len(rows) // 2
    reads = "candidate" if config.gap_turn is None else "pair"
    result: dict[str, Any] = {}
    for name in names:
        directory = config.output / name
        tokenizer, model = load_reading_tokenizer(directory), load_reward_model(directory, config.seed)
        centering = config.gap_reward.centering
        # The check needs few scores of equal texts; centering by them needs all.
        few = rows if centering == "self" else rows[:500]
        forward, backward, same_new, same_old = (
            gap_scores([model], tokenizer, each, config.gap_turn)
            for each in (rows, _turned(rows), _identical(_turned(few)), _identical(few))
        )
        gaps = _centred(forward, same_old if centering == "self" else backward, centering)
        worker.report(Progress(len(rows), len(rows)))
        a, b = fit(gaps[:half], better[:half])
        probabilities = [sigmoid(a * g + b) for g in gaps[half:]]
        ece = expected_calibration_error(probabilities, better[half:])
        found = fitness(
            forward, backward, (same_new, same_old), better, order_bias=abs(sigmoid(b) - 0.5), ece=ece
        )
        append_metrics(worker, {"checkpoint": name, "fitness": found.as_dict()})
        if config.gap_reward.require_fit:
            require_fit(found, name)
        result = {"a": a, "b": b, "ece": ece, "n": len(rows) - half, "accuracy": found.accuracy}
        record = {key: round(result[key], 6) for key in ("a", "b", "ece")} | {"n": result["n"]}
        update_manifest(directory, {"gap": {"reads": reads, "centering": centering, "calibration": record}})
        append_metrics(worker, {"checkpoint": name, **result})
    return result


def orders(pairs: Sequence[PreferencePair]) -> tuple[list[tuple[Any, str, str]], list[bool]]:
    """Alternate which response stands first, so that half of the outcomes are "better"."""
    rows, better = [], []
    for i, pair in enumerate(pairs):
        first_wins = i % 2 == 0
        new, old = (pair.chosen, pair.rejected) if first_wins else (pair.rejected, pair.chosen)
        rows.append((pair.prompt, new, old))
        better.append(first_wins)
    return rows, better
