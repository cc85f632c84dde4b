"""The curriculum ablation: the improver after both phases of RL, and after as many steps of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.judges import bootstrap_mean, compare
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Table, curve, delta, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import RUN, Asked, System, pool
from training.verdicts import Bar

ITERATIONS = 3
NAMES = {"phase_0": "phase 0 alone", "phase_1": "phase 1 alone", RUN: "both phases", "sft": "no RL"}


@dataclass(frozen=True)
class Sample:
    asked: Asked


def gather(context: Context) -> Sample:
    models = {"sft": {"improver": context.run.output / "improver_sft"}}
    for name in ("phase_0", "phase_1"):
        models[name] = {"improver": context.variant(name).output / "improver"}
    systems = {"Original": System("draft")}
    for name, shown in NAMES.items():
        for gated in (False, True):
            iterations = (
                context.study.iterations if name == RUN else min(ITERATIONS, context.study.iterations)
            )
            systems[_name(shown, gated)] = System("pit", name, iterations, gated=gated)
    return Sample(context.desk(models).ask(systems))


def _name(shown: str, gated: bool) -> str:
    return f"{shown}, gated" if gated else shown


def figures(samples: Sequence[Sample]) -> Figures:
    asked = pool([sample.asked for sample in samples])
    original = scores(asked.pairs, asked.texts("Original"))
    tables, charts, bars = [], [], []
    for gated in (False, True):
        after = {
            shown: [scores(asked.pairs, asked.texts(_name(shown, gated), i)) for i in range(ITERATIONS + 1)]
            for shown in NAMES.values()
        }
        both = after[NAMES[RUN]]
        rows: list[list[Cell]] = []
        for shown, each in after.items():
            row: list[Cell] = [shown, *(mean(bootstrap_mean(one)) for one in each[1:])]
            row += [delta(compare(each[1], original)), delta(compare(each[ITERATIONS], original))]
            versus = compare(both[ITERATIONS], each[ITERATIONS])
            rows.append([*row, "" if shown == NAMES[RUN] else delta(versus)])
            if shown.startswith("phase"):
                name = f"both phases beat {shown}, {'gated' if gated else 'ungated'}"
                bars.append(Bar(name, "Δ > 0, interval too", str(versus), versus.low > 0))
        columns = ["improver", *(f"mean ({UNIT}) after {i}" for i in range(1, ITERATIONS + 1)),
                   "Δ vs Original after 1", f"after {ITERATIONS}",
                   f"both phases against it, after {ITERATIONS}"]  # fmt: skip
        title = "With the gate" if gated else "Without a gate"
        text = f"n = {len(asked.pairs)} prompts. All trainings take as many steps, from the same anchor."
        tables.append(Table(title, columns, rows, text))
        charts.append(_chart(after, gated))
    return Figures(tables=tables, charts=charts, bars=bars)


def _chart(after: dict[str, list[list[float]]], gated: bool) -> Chart:
    series = []
    for shown, each in after.items():
        series.append(curve(shown, list(range(len(each))), [bootstrap_mean(one) for one in each]))
    title = f"Curriculum, {'with' if gated else 'without'} the gate"
    return Chart(f"curriculum{'_gated' * gated}", title, "line", "iteration", UNIT, series,
                 "Iteration 0 is the draft.")  # fmt: skip
