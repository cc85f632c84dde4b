"""The curriculum ablation: the improver after both phases of RL, and after as many steps of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.judges import bootstrap_mean, compare
from training.paths import improver_anchor
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Table, curve, delta, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import RUN, Asked, System, pool
from training.verdicts import Bar

ITERATIONS = 3
BOTH, ALONE = "both phases", {"phase 0 alone": "phase_0", "phase 1 alone": "phase_1"}


@dataclass(frozen=True)
class Sample:
    """Answers of the improvers, whose names in tables are `improvers`, each with and without the gate."""

    seed: int
    asked: Asked
    improvers: tuple[str, ...]


def gather(context: Context) -> Sample:
    improvers = ALONE | {BOTH: RUN, "no RL": "sft"}
    models = {"sft": {"improver": context.run.output / "improver_sft"}}
    if context.run.rft_improver is not None:
        improvers |= {"no RL": "rft", "fine-tuning on the data alone": "sft"}
        models["rft"] = {"improver": improver_anchor(context.run)}
    for name in ALONE.values():
        models[name] = {"improver": context.variant(name).output / "improver"}
    k = context.study.iterations
    systems = {"Original": System("draft")}
    for shown, name in improvers.items():
        for gated in (False, True):
            # The run's own are asked as the main table asks them: then they are there already.
            iterations = k if name == RUN else min(ITERATIONS, k)
            systems[_name(shown, gated)] = System("pit", name, iterations, gated=gated)
    return Sample(context.run.seed, context.desk(models).ask(systems), tuple(improvers))


def _name(shown: str, gated: bool) -> str:
    return f"{shown}, gated" if gated else shown


def figures(samples: Sequence[Sample]) -> Figures:
    asked = pool([sample.asked for sample in samples])
    original = scores(asked.pairs, asked.texts("Original"))
    tables, charts, bars = [], [], []
    for gated in (False, True):
        after = {
            shown: [scores(asked.pairs, asked.texts(_name(shown, gated), i)) for i in range(ITERATIONS + 1)]
            for shown in samples[0].improvers
        }
        both = after[BOTH]
        rows: list[list[Cell]] = []
        for shown, each in after.items():
            row: list[Cell] = [shown, *(mean(bootstrap_mean(one)) for one in each[1:])]
            row += [delta(compare(each[1], original)), delta(compare(each[ITERATIONS], original))]
            versus = compare(both[ITERATIONS], each[ITERATIONS])
            rows.append([*row, "" if shown == BOTH else delta(versus)])
            if shown in ALONE:
                name = f"both phases beat {shown}, {'gated' if gated else 'ungated'}"
                bars.append(Bar(name, "Δ > 0, interval too", str(versus), versus.low > 0))
        columns = ["improver", *(f"mean ({UNIT}) after {i}" for i in range(1, ITERATIONS + 1)),
                   "Δ vs Original after 1", f"after {ITERATIONS}",
                   f"both phases against it, after {ITERATIONS}"]  # fmt: skip
        title = "With the gate" if gated else "Without a gate"
        text = f"n = {len(asked.pairs)} prompts. All trainings take as many steps, from the one in “no RL”."
        tables.append(Table(title, columns, rows, text))
        charts.append(_chart(after, gated))
    if len(samples) > 1:
        tables.append(_seeds(samples))
    return Figures(tables=tables, charts=charts, bars=bars)


def _seeds(samples: Sequence[Sample]) -> Table:
    rows: list[list[Cell]] = []
    for sample in samples:
        asked = sample.asked
        after = {
            shown: scores(asked.pairs, asked.texts(_name(shown, True), ITERATIONS))
            for shown in sample.improvers
        }
        row: list[Cell] = [str(sample.seed), mean(bootstrap_mean(after[BOTH]))]
        rows.append(
            [*row, *(delta(compare(after[BOTH], each)) for name, each in after.items() if name != BOTH)]
        )
    others = [f"against {name}" for name in samples[0].improvers if name != BOTH]
    text = f"With the gate, after {ITERATIONS} iterations."
    return Table("Both phases, each training seed", ["seed", f"mean ({UNIT})", *others], rows, text)


def _chart(after: dict[str, list[list[float]]], gated: bool) -> Chart:
    series = []
    for shown, each in after.items():
        series.append(curve(shown, list(range(len(each))), [bootstrap_mean(one) for one in each]))
    title = f"Curriculum, {'with' if gated else 'without'} the gate"
    return Chart(f"curriculum{'_gated' * gated}", title, "line", "iteration", UNIT, series,
                 "Iteration 0 is the draft.")  # fmt: skip
