"""The gap reward's scores over the four pair types (candidate, baseline): wl, ww, ll, lw.

w and l are the held-out pairs' better and worse response by the label. The wanted order is
wl ≥ ww ≈ ll ≥ lw; nothing forces ww and ll to 0, which is why the gate reads the centred gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from training.evaluate import examples
from training.judges import bootstrap_mean
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Series, Table, Value, mean
from training.studies.gap_scores import GapReward
from training.verdicts import Bar

TYPES = {"wl": "better over worse", "ww": "better over itself", "ll": "worse over itself",
         "lw": "worse over better"}  # fmt: skip


ORDERS = {f"{one} > {other}": (one, other) for one, other in (
    ("wl", "ww"), ("wl", "ll"), ("wl", "lw"), ("ww", "lw"), ("ll", "lw"),
)}  # fmt: skip
"""The terms of the five-term loss."""


@dataclass(frozen=True)
class Sample:
    """Raw scores by the gap reward's name and the pair type, each (n,)."""

    scores: dict[str, dict[str, list[float]]]


def gather(context: Context) -> Sample:
    pairs = examples(context.run, context.study.examples, context.study.example_seed)
    runs = {"five terms": context.run} | {name: context.variant(name) for name in context.study.variants}
    found = {}
    for name, config in runs.items():
        gap = GapReward.of(config)
        sides = {"w": [pair.chosen for pair in pairs], "l": [pair.rejected for pair in pairs]}
        found[name] = {
            kind: gap.raw(
                [
                    (pair.prompt, new, old)
                    for pair, new, old in zip(pairs, sides[kind[0]], sides[kind[1]], strict=True)
                ]
            )
            for kind in TYPES
        }
    return Sample(found)


def figures(samples: Sequence[Sample]) -> Figures:
    tables, charts, bars = [], [], []
    for name in samples[0].scores:
        found = {kind: [v for sample in samples for v in sample.scores[name][kind]] for kind in TYPES}
        rows: list[list[Cell]] = [
            [f"{kind}: {TYPES[kind]}", mean(bootstrap_mean(values)), Value(pstdev(values), digits=2)]
            for kind, values in found.items()
        ]
        held = {
            title: 100 * fmean(float(a > b) for a, b in zip(found[one], found[other], strict=True))
            for title, (one, other) in ORDERS.items()
        }
        n = len(found["wl"])
        text = f"n = {n} held-out pairs, w and l by their noisy label. Raw r_gap, not centred."
        tables.append(
            Table(
                f"Gap reward ({name})",
                ["candidate, baseline", "mean r_gap", "standard deviation"],
                rows,
                text,
            )
        )
        share: list[list[Cell]] = [[title, Value(value)] for title, value in held.items()]
        tables.append(
            Table(f"How often the order of the loss holds ({name})", ["order", "% of pairs"], share)
        )
        series = [Series(f"{kind}: {TYPES[kind]}", [], values) for kind, values in found.items()]
        slug = f"pair_types_{name}".replace(" ", "_")
        charts.append(
            Chart(slug, f"Gap reward ({name}) over the pair types", "distribution", "r_gap", "", series)
        )
        middle = {kind: fmean(found[kind]) for kind in TYPES}
        ordered = (
            middle["wl"] > max(middle["ww"], middle["ll"]) and min(middle["ww"], middle["ll"]) > middle["lw"]
        )
        shown = ", ".join(f"{kind} {value:+.2f}" for kind, value in middle.items())
        bars.append(Bar(f"means in the wanted order ({name})", "wl > ww, ll > lw", shown, ordered))
    return Figures(tables=tables, charts=charts, bars=bars)
