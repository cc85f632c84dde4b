"""The over-optimisation curve: gap reward and judge over the steps of an RL that goes on for too long.

Each variant is the run's RL with more steps. The figures are those of every step's own samples, on prompts
that RL has not seen before (monitors.py), at RL's temperature; lines are means over a window. At the end the
last improver answers through the server beside the run's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from training.errors import DataError
from training.judges import bootstrap_mean, compare
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Series, Table, Value, delta, mean
from training.studies.judging import UNIT, scores
from training.studies.systems import RUN, Asked, System, pool

WINDOW = 5
ITERATIONS = 3
LABELS = {
    "reward": "gap reward, penalties taken off",
    "gold": UNIT,
    "kl": "KL, nats a token",
    "repeated": "4-grams said again, a response",
}
SHOWN = ("reward", "gold", "kl", "words", "repeated", "copied")


@dataclass(frozen=True)
class Sample:
    """`curves`: by variant the figures of each RL step, in order; `asked`: the last improvers, served."""

    seed: int
    asked: Asked
    curves: dict[str, list[dict[str, float]]]


def gather(context: Context) -> Sample:
    runs = {RUN: context.run} | {name: context.variant(name) for name in context.study.variants}
    curves = {name: rl_steps(run.output / "metrics.jsonl") for name, run in runs.items()}
    models = {name: {"improver": run.output / "improver"} for name, run in runs.items() if name != RUN}
    systems = {"Original": System("draft")}
    for name in runs:
        for gated in (False, True):
            k = context.study.iterations if name == RUN else min(ITERATIONS, context.study.iterations)
            systems[_name(name, gated)] = System("pit", name, k, gated=gated)
    return Sample(context.run.seed, context.desk(models).ask(systems), curves)


def _name(variant: str, gated: bool) -> str:
    return f"{'the run' if variant == RUN else variant}{', gated' if gated else ''}"


def rl_steps(path: Path) -> list[dict[str, float]]:
    """The figures of the improver's RL by step, from a run's metrics; of a resumed run the last of each step.

    Raises:
        DataError: there are none.
    """
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if record["stage"] == "improver" and "reward" in record and record.get("gold") is not None:
            steps[record["step"]] = {
                name: float(record[name]) for name in SHOWN if record.get(name) is not None
            }
    if not steps:
        raise DataError("no figures of the improver's RL with a gold score in it", path=path)
    return [steps[step] for step in sorted(steps)]


def figures(samples: Sequence[Sample]) -> Figures:
    charts = []
    for key, label in LABELS.items():
        series = [
            Series(_legend(samples, sample, name), *_window(curve, key))
            for sample in samples
            for name, curve in sample.curves.items()
            if all(key in one for one in curve)
        ]
        charts.append(Chart(f"rl_{key}", f"RL: {label} by step", "line", "RL step", label, series,
                            f"Means over {WINDOW} steps."))  # fmt: skip
    paths = [
        Series(_legend(samples, sample, name), _window(curve, "reward")[1], _window(curve, "gold")[1])
        for sample in samples
        for name, curve in sample.curves.items()
    ]
    text = f"One line an RL run, from its first steps to its last; means over {WINDOW} steps."
    title = "What the judge says as the gap reward rises"
    charts.insert(0, Chart("rl_reward_gold", title, "line", LABELS["reward"], UNIT, paths, text))
    return Figures(tables=[_turns(samples), _served(samples)], charts=charts)


def _legend(samples: Sequence[Sample], sample: Sample, name: str) -> str:
    return _name(name, False) + (f", seed {sample.seed}" if len(samples) > 1 else "")


def _window(curve: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Last step and mean of each window."""
    ends = range(min(WINDOW, len(curve)), len(curve) + 1)
    means = [fmean(one[key] for one in curve[max(0, end - WINDOW) : end]) for end in ends]
    return [float(end) for end in ends], means


def _turns(samples: Sequence[Sample]) -> Table:
    rows: list[list[Cell]] = []
    for sample in samples:
        for name, curve in sample.curves.items():
            steps, gold = _window(curve, "gold")
            reward = _window(curve, "reward")[1]
            # Without its penalty RL computes no KL.
            kl: Cell = Value(_window(curve, "kl")[1][-1], digits=3) if "kl" in curve[0] else ""
            best = max(range(len(gold)), key=gold.__getitem__)
            rows.append(
                [
                    _legend(samples, sample, name), str(len(curve)), f"{steps[best]:.0f}",
                    *(Value(each, digits=2) for at in (0, best, -1) for each in (reward[at], gold[at])),
                    kl,
                ]
            )  # fmt: skip
    columns = ["RL", "steps", "judge highest at", "reward first", "judge first", "reward there",
               "judge there", "reward last", "judge last", "KL last"]  # fmt: skip
    text = (
        f"Means over {WINDOW} steps of the samples that RL itself draws. Where the judge's last is below its "
        "highest, RL went on for too long."
    )
    return Table("Where gap reward and judge part", columns, rows, text)


def _served(samples: Sequence[Sample]) -> Table:
    asked = pool([sample.asked for sample in samples])
    original = scores(asked.pairs, asked.texts("Original"))
    rows: list[list[Cell]] = []
    for name in asked.records:
        if name == "Original":
            continue
        each = [scores(asked.pairs, asked.texts(name, i)) for i in range(1, ITERATIONS + 1)]
        words = fmean(len(text.split()) for text in asked.texts(name, ITERATIONS))
        rows.append(
            [
                name,
                *(mean(bootstrap_mean(one)) for one in each),
                delta(compare(each[-1], original)),
                Value(words),
            ]
        )
    columns = [
        "improver",
        *(f"mean ({UNIT}) after {i}" for i in range(1, ITERATIONS + 1)),
        "Δ vs Original",
        "words",
    ]
    return Table("The last improvers, served", columns, rows, f"n = {len(asked.pairs)} prompts.")
