"""Quality against tokens and time: what each system buys, and which no other system beats at its price.

Time is that of a request among `concurrency` others on one machine, no latency of a quiet server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.judges import bootstrap_mean
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Table, Value, curve, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import Asked, System, pool, self_refines

BEST_OF = (2, 4, 8, 16)
CANDIDATES = 4
FEW = 3


@dataclass(frozen=True)
class Sample:
    asked: Asked
    iterations: int


@dataclass(frozen=True)
class Point:
    """What one system costs, draft included, and buys."""

    family: str
    name: str
    written: float
    tokens: float
    judged: float
    seconds: float
    scores: list[float]


def gather(context: Context) -> Sample:
    k, heat = context.study.iterations, context.study.temperatures
    t, best = heat.get("pit"), heat.get("best_of_n")
    systems = {
        "Original": System("draft", temperature=heat.get("original")),
        "PIT": System("pit", iterations=k, gated=True, temperature=t),
        "PIT, ungated": System("pit", iterations=k, temperature=t),
        f"PIT, {CANDIDATES} candidates": System(
            "pit", iterations=min(FEW, k), gated=True, candidates=CANDIDATES, temperature=t
        ),
        **{f"best-of-{n}": System("best_of_n", candidates=n, gated=True, temperature=best) for n in BEST_OF},
        **self_refines(k, heat.get("self_refine")),
    }
    return Sample(context.desk().ask(systems), k)


def figures(samples: Sequence[Sample]) -> Figures:
    asked = pool([sample.asked for sample in samples])
    points = _points(asked, samples[0].iterations)
    n = len(asked.pairs)
    tables, charts = [], []
    rows: list[list[Cell]] = [
        [
            p.name, mean(bootstrap_mean(p.scores)), Value(p.written, digits=0), Value(p.tokens, digits=0),
            Value(p.judged, digits=0), Value(p.seconds, digits=2),
            "yes" if _efficient(p, points, "tokens") else "",
            "yes" if _efficient(p, points, "seconds") else "",
        ]
        for p in sorted(points, key=lambda p: p.tokens)
    ]  # fmt: skip
    columns = ["system", f"mean ({UNIT})", "written", "tokens", "gap reward's", "seconds",
               "none better for its tokens", "none better for its time"]  # fmt: skip
    text = (
        f"n = {n} prompts. Means of one prompt, the draft included: tokens written, and read and written; "
        "beside it what the gap reward read. Seconds: among the other requests in flight; systems are not "
        "all asked at the same time, so they compare only where nothing else used the machine."
    )
    tables.append(Table("Quality and cost", columns, rows, text))
    for axis, label in (
        ("tokens", "tokens read and written for one prompt"),
        ("seconds", "seconds for one prompt"),
    ):
        series = []
        for family in dict.fromkeys(p.family for p in points):
            mine = sorted((p for p in points if p.family == family), key=lambda p: p.tokens)
            found = [bootstrap_mean(p.scores) for p in mine]
            labels = [_short(p) for p in mine]
            series.append(curve(family, [getattr(p, axis) for p in mine], found, labels))
        charts.append(
            Chart(f"quality_by_{axis}", f"Quality against {axis}", "scatter", label, UNIT, series,
                  "Numbers: iterations, or candidates of best-of-n. Bars: 95% intervals.", log_x=True)
        )  # fmt: skip
    return Figures(tables=tables, charts=charts)


def _points(asked: Asked, k: int) -> list[Point]:
    draft = asked.tokens("Original")
    waited = asked.seconds("Original")
    found = [_point(asked, "Original", "Original", "Original", None, (0.0, 0.0, 0.0))]
    base = (draft["completion"], draft["total"], waited)
    refined = [name for name in asked.records if name.startswith("Self-Refine")]
    best = max(refined, key=lambda name: max(sum(_after(asked, name, i)) for i in range(1, k + 1)))
    loops = {"PIT": k, "PIT, ungated": k, f"PIT, {CANDIDATES} candidates": min(FEW, k), best: k}
    for name, count in loops.items():
        found += [_point(asked, name, name, f"{name}, {i}", i, base) for i in range(1, count + 1)]
    found += [_point(asked, "best-of-n", f"best-of-{n}", f"best-of-{n}", 1, base) for n in BEST_OF]
    return found


def _point(
    asked: Asked, family: str, key: str, name: str, iterations: int | None, base: tuple[float, float, float]
) -> Point:
    tokens, seconds = asked.tokens(key, iterations), asked.seconds(key, iterations)
    return Point(
        family, name, base[0] + tokens["completion"], base[1] + tokens["total"], tokens["score"],
        base[2] + seconds,
        _after(asked, key, iterations),
    )  # fmt: skip


def _after(asked: Asked, name: str, iterations: int | None) -> list[float]:
    return scores(asked.pairs, asked.texts(name, iterations))


def _short(point: Point) -> str:
    if point.family == "Original":
        return ""
    return point.name.rsplit("-" if point.family == "best-of-n" else ", ", 1)[-1]


def _efficient(point: Point, points: Sequence[Point], axis: str) -> bool:
    """Whether no system costs at most as much and has a higher mean."""
    mine = sum(point.scores)
    return not any(getattr(p, axis) <= getattr(point, axis) and sum(p.scores) > mine for p in points)
