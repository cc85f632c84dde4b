"""From the collected answers to the figures of the report, for drafts that people rewrote (ParaDetox,
Disfl-QA).

There the systems improve the draft of the data, not the policy's answer, and a human text says what was
wanted: the judge is the edit distance to the nearest human rewrite, and for ParaDetox the toxicity judge of
training/judges.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from training.analysis import Answers
from training.answers import Record, responses, tokens_after, until_first_rejection
from training.data import PreferencePair
from training.judges import JudgeQuality, ToxicityJudge
from training.judges.formulas import distance
from training.judges.joint import JointFigures
from training.systems import Plan, scored_order
from training.verdicts import (
    Agreement,
    Edits,
    agreement,
    edits,
    expected_calibration_error,
    scored_candidates,
)


@dataclass(frozen=True)
class EditFigures:
    """Everything the report shows. `edits` by system and iteration count; `tokens` likewise, mean for one
    draft."""

    examples: int
    headline: str
    edits: dict[str, Edits]
    tokens: dict[str, float]
    agreements: dict[str, Agreement | None]
    label: dict[str, float]
    toxicity_judge: JudgeQuality | None
    stops: dict[str, int]
    samples: list[dict[str, str]]
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    joint: JointFigures | None = None


def _closeness(pair: PreferencePair, text: str) -> float:
    return -distance(pair, text)


def edit_figures(
    pairs: Sequence[PreferencePair], answers: Answers, plan: Plan, toxicity: ToxicityJudge | None
) -> EditFigures:
    """`pairs` are complete examples."""
    drafts = [pair.rejected for pair in pairs]
    before = [distance(pair, pair.rejected) for pair in pairs]
    toxic_before = toxicity.probabilities(drafts) if toxicity else None
    gated = [answers[pair.id]["pit_gated"] for pair in pairs]
    found: dict[str, Edits] = {}
    tokens: dict[str, float] = {}

    def add(name: str, records: Sequence[Record], iterations: int) -> list[str]:
        texts = [responses(record, iterations)[-1] for record in records]
        after = [distance(pair, text) for pair, text in zip(pairs, texts, strict=True)]
        rated = (toxic_before, toxicity.probabilities(texts)) if toxicity and toxic_before else None
        found[name] = edits(before, after, drafts, texts, rated)
        spent = [tokens_after(record, iterations) for record in records]
        tokens[name] = float(np.mean([one["prompt"] + one["completion"] for one in spent]))
        return texts

    ungated = [answers[pair.id]["pit"] for pair in pairs]
    for i in range(1, plan.iterations + 1):
        add(f"PIT ungated, {i}", ungated, i)
    for i in range(1, plan.iterations + 1):
        add(f"PIT gated, {i}", gated, i)
    headline = f"PIT as served (patience 1, at most {min(3, plan.iterations)})"
    final = add(headline, [until_first_rejection(record) for record in gated], min(3, plan.iterations))
    return EditFigures(
        examples=len(pairs),
        headline=headline,
        edits=found,
        tokens=tokens,
        agreements=_agreements(pairs, gated),
        label=_label(pairs, [answers[pair.id]["score"]["win_probability"] for pair in pairs]),
        toxicity_judge=toxicity.quality(pairs) if toxicity else None,
        stops=dict(Counter(str(record["stop_reason"]) for record in gated)),
        samples=[
            {"draft": pair.rejected, "PIT": text, "human": pair.chosen}
            for pair, text in list(zip(pairs, final, strict=True))[:5]
        ],
        seconds={s: float(np.mean([answers[p.id][s]["seconds"] for p in pairs])) for s in plan.systems()},
    )


def _agreements(pairs: Sequence[PreferencePair], gated: Sequence[Record]) -> dict[str, Agreement | None]:
    found: dict[str, Agreement | None] = {}
    for title, count in (("PIT output and its reference", None), ("the first iteration of these", 1)):
        scored = [
            one
            for pair, record in zip(pairs, gated, strict=True)
            for one in scored_candidates(record, partial(_closeness, pair), count)
        ]
        found[title] = agreement([p for p, _ in scored], [d for _, d in scored])
    return found


def _label(pairs: Sequence[PreferencePair], probabilities: Sequence[float]) -> dict[str, float]:
    first = [scored_order(pair)[0] == pair.chosen for pair in pairs]
    hits = [(p > 0.5) == better for p, better in zip(probabilities, first, strict=True)]
    ece = expected_calibration_error(probabilities, first)
    return {"pairs": float(len(first)), "accuracy": float(np.mean(hits)), "ece": ece}
