"""Can the gap reward be trusted on what the models themselves write? Its agreement with the judge, iteration
by iteration, and how far its probabilities come true there.

Ungated: every candidate against the one before it, scored here, because the server does not score an ungated
run. Gated: every candidate against the best so far, as the gate saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from training.judges import bootstrap_mean
from training.studies.context import Context
from training.studies.figures import Cell, Chart, Figures, Table, Value, curve, mean
from training.studies.gap_scores import GapReward
from training.studies.judging import scores
from training.studies.systems import Asked, System, pool
from training.verdicts import expected_calibration_error

PIT, UNGATED = "PIT, gated", "PIT, ungated"
Outcome = tuple[float, float]
"""P(candidate is better), and the judge's difference."""


@dataclass(frozen=True)
class Sample:
    """`outcomes` by loop: one list an iteration."""

    asked: Asked
    outcomes: dict[str, list[list[Outcome]]]


def gather(context: Context) -> Sample:
    k, heat = context.study.iterations, context.study.temperatures
    asked = context.desk().ask(
        {
            PIT: System("pit", iterations=k, gated=True, temperature=heat.get("pit")),
            UNGATED: System("pit", iterations=k, temperature=heat.get("pit")),
        }
    )
    gap = GapReward.of(context.run)
    outcomes: dict[str, list[list[Outcome]]] = {PIT: [], UNGATED: []}
    for i in range(1, k + 1):
        outcomes[PIT].append(_gated(asked, i))
        new, old = asked.texts(UNGATED, i), asked.texts(UNGATED, i - 1)
        rows = [
            (p.prompt, a, b) for p, a, b in zip(asked.pairs, new, old, strict=True) if a.strip() != b.strip()
        ]
        differences = [
            a - b
            for a, b, x, y in zip(scores(asked.pairs, new), scores(asked.pairs, old), new, old, strict=True)
            if x.strip() != y.strip()
        ]
        outcomes[UNGATED].append(list(zip(gap.probabilities(rows), differences, strict=True)) if rows else [])
    return Sample(asked, outcomes)


def _gated(asked: Asked, iteration: int) -> list[Outcome]:
    found = []
    for pair, record in zip(asked.pairs, asked.records[PIT], strict=True):
        if len(record["iterations"]) < iteration:
            continue
        one = record["iterations"][iteration - 1]
        if one["win_probability"] is None:
            continue
        accepted = [each["text"] for each in record["iterations"][: iteration - 1] if each["accepted"]]
        baseline = accepted[-1] if accepted else record["reference"]
        if one["text"].strip() == baseline.strip():
            continue
        new, old = scores([pair, pair], [one["text"], baseline])
        found.append((one["win_probability"], new - old))
    return found


def figures(samples: Sequence[Sample]) -> Figures:
    tables, series = [], []
    n = len(pool([sample.asked for sample in samples]).pairs)
    for name in (UNGATED, PIT):
        rows: list[list[Cell]] = []
        points = []
        for i, each in enumerate(zip(*(sample.outcomes[name] for sample in samples), strict=True), 1):
            outcomes = [one for part in each for one in part]
            untied = [(p, d > 0) for p, d in outcomes if d]
            if not untied:
                rows.append([str(i), "", "", "", "", str(len(outcomes)), "0"])
                continue
            hits = bootstrap_mean([100 * (0.5 if p == 0.5 else float((p > 0.5) == up)) for p, up in untied])
            points.append((i, hits))
            error = expected_calibration_error([p for p, _ in untied], [up for _, up in untied])
            rows.append(
                [
                    str(i), mean(hits, digits=1), Value(fmean(p for p, _ in outcomes), digits=3),
                    Value(100 * fmean(float(d > 0) for _, d in outcomes)),
                    Value(error, digits=3),
                    str(len(outcomes)), str(len(untied)),
                ]
            )  # fmt: skip
        columns = ["iteration", "agrees with the judge, %", "mean P(better)", "really better, %",
                   "calibration error", "changed", "of these not tied"]  # fmt: skip
        text = (
            f"n = {n} prompts. Candidates that say the same as their baseline are left out; so are the "
            "judge's ties where agreement is counted."
        )
        tables.append(Table(name, columns, rows, text))
        series.append(curve(name, [i for i, _ in points], [m for _, m in points]))
    chart = Chart("own_samples", "Agreement of gap reward and judge on the models' own samples", "line",
                  "iteration", "agreement, % of untied pairs", series)  # fmt: skip
    return Figures(tables=tables, charts=[chart])
