"""The temperature sweep: every system, its draft included, at each temperature of the grid.

Its examples are others than the main table's, so that a temperature chosen here is not chosen on the examples
that it is then judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.judges import bootstrap_mean, compare
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Table, curve, delta, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import Asked, System, pool, self_refines
from training.verdicts import Bar

ITERATIONS = 3


@dataclass(frozen=True)
class Sample:
    asked: Asked
    grid: tuple[float, ...]


def gather(context: Context) -> Sample:
    systems = {}
    for t in context.study.grid:
        systems[_at("Original", t)] = System("draft", temperature=t)
        systems[_at("PIT", t)] = System("pit", iterations=ITERATIONS, gated=True, temperature=t)
        systems[_at("best-of-4", t)] = System("best_of_n", candidates=4, gated=True, temperature=t)
        systems |= {_at(name, t): system for name, system in self_refines(ITERATIONS, t).items()}
    return Sample(context.desk().ask(systems), context.study.grid)


def _at(name: str, temperature: float) -> str:
    return f"{name} at {temperature:g}"


def figures(samples: Sequence[Sample]) -> Figures:
    asked, grid = pool([sample.asked for sample in samples]), samples[0].grid
    known: dict[str, list[list[float]]] = {}
    refined = sorted({name.split(" at ")[0] for name in asked.records if name.startswith("Self-Refine")})
    for name in ("Original", "PIT", "best-of-4", *refined):
        known[name] = [scores(asked.pairs, asked.texts(_at(name, t))) for t in grid]
    best_refined = max(refined, key=lambda name: max(map(sum, known[name])))
    shown = {"Original": "Original", "PIT": "PIT", best_refined: best_refined, "best-of-4": "best-of-4"}
    best = {name: max(range(len(grid)), key=lambda i: sum(known[name][i])) for name in shown}
    return Figures(
        tables=[
            _by_temperature(known, shown, grid, len(asked.pairs)),
            _best(known, shown, best, grid, best_refined),
        ],
        charts=[_chart(known, shown, grid)],
        bars=_bars({name: known[name][best[name]] for name in shown}, best_refined),
    )


def _by_temperature(
    known: dict[str, list[list[float]]], shown: dict[str, str], grid: Sequence[float], n: int
) -> Table:
    rows: list[list[Cell]] = []
    for i, t in enumerate(grid):
        row: list[Cell] = [f"{t:g}"]
        for name in shown:
            row.append(mean(bootstrap_mean(known[name][i])))
            if name != "Original":
                row.append(delta(compare(known[name][i], known["Original"][i])))
        rows.append(row)
    columns = ["temperature"]
    for name in shown:
        columns += [f"{name}, {UNIT}"] + [f"{name}, Δ"] * (name != "Original")
    text = (
        f"n = {n} prompts, others than the main table's. Δ against the Original of the same temperature. PIT "
        f"(gated) and Self-Refine after {ITERATIONS} iterations; drafts are sampled at the same temperature."
    )
    return Table("Each temperature", columns, rows, text)


def _best(
    known: dict[str, list[list[float]]], shown: dict[str, str], best: dict[str, int], grid: Sequence[float],
    refined: str,
) -> Table:  # fmt: skip
    rows: list[list[Cell]] = []
    for name in shown:
        at = known[name][best[name]]
        row: list[Cell] = [name, f"{grid[best[name]]:g}", mean(bootstrap_mean(at))]
        for other in ("Original", refined, "best-of-4"):
            theirs = known[other][best[other]]
            row.append("" if name == other else delta(compare(at, theirs)))
        rows.append(row)
    columns = [
        "system",
        "best temperature",
        f"mean ({UNIT})",
        "Δ vs Original at its best",
        f"Δ vs {refined} at its best",
        "Δ vs best-of-4 at its best",
    ]
    text = (
        "The best temperature is the one with the highest mean on these prompts, which favours each a little."
    )
    return Table("Each system at its best temperature", columns, rows, text)


def _bars(at_best: dict[str, list[float]], refined: str) -> list[Bar]:
    bars = []
    for other, wanted in (("Original", 80), (refined, 50)):
        rate = compare(at_best["PIT"], at_best[other])
        name = f"PIT vs {other}, each at its best temperature"
        bars.append(Bar(name, f"Δ ≥ +{wanted}", str(rate), rate.delta >= wanted))
    return bars


def _chart(known: dict[str, list[list[float]]], shown: dict[str, str], grid: Sequence[float]) -> Chart:
    series = []
    for name in shown:
        found = [bootstrap_mean(each) for each in known[name]]
        series.append(curve(name, list(grid), found))
    return Chart("temperature", "Mean score by temperature", "line", "temperature", UNIT, series)
