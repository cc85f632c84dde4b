"""What people said, as figures: win, lose, tie of each comparison, and how far the annotators agree.

In the pipeline this is `pit-train judge summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from training.judges.agreement import TwoJudges, fleiss_kappa, two_judges
from training.judges.people import SAME, Said, Tasks, by_task, majority, read_tasks, read_verdicts
from training.judges.protocol import Judged, Verdict, win_rate
from training.report import Section


@dataclass(frozen=True)
class Summary:
    """`comparisons` by majority, one verdict for each example; None where nothing is judged yet.

    `annotators`: how many tasks each has done, of `tasks`, and how many of them are skips. `pairs`: each two
    annotators; `fleiss`: all of them together.
    """

    tasks: int
    comparisons: dict[str, Judged | None]
    annotators: dict[str, tuple[int, int]]
    pairs: dict[str, TwoJudges | None]
    fleiss: float | None


def summarize(directory: Path) -> Summary:
    """Raises `DataError` where there are no tasks."""
    tasks, said = read_tasks(directory), read_verdicts(directory)
    found = by_task(said)
    values = [
        [v for v in found[task.key].values() if v is not None] for task in tasks.tasks if task.key in found
    ]
    return Summary(
        tasks=len(tasks.tasks),
        comparisons=_comparisons(tasks, found),
        annotators={
            name: (len(each), sum(one.value is None for one in each)) for name, each in said.items() if each
        },
        pairs=_pairs(tasks, said, found),
        fleiss=fleiss_kappa(values),
    )


def _comparisons(tasks: Tasks, found: Mapping[str, Mapping[str, int | None]]) -> dict[str, Judged | None]:
    verdicts: dict[str, list[Verdict]] = {}
    for place in tasks.places:
        verdict = majority(found.get(place.key, {}))
        if place.sign == 0:
            verdict = Verdict(0, SAME)
        elif verdict.value is not None:
            verdict = Verdict(place.sign * verdict.value)
        verdicts.setdefault(place.comparison, []).append(verdict)
    return {
        name: win_rate(each) if any(v.value is not None for v in each) else None
        for name, each in verdicts.items()
    }


def _pairs(
    tasks: Tasks, said: Mapping[str, Sequence[Said]], found: Mapping[str, Mapping[str, int | None]]
) -> dict[str, TwoJudges | None]:
    columns = {name: [found.get(task.key, {}).get(name) for task in tasks.tasks] for name in said}
    return {f"{a} and {b}": two_judges(columns[a], columns[b]) for a, b in combinations(sorted(columns), 2)}


def section(found: Summary) -> Section:
    """The summary for the terminal."""
    lines = ["By majority of the annotators; ties count."]
    for name, (done, skipped) in found.annotators.items():
        lines.append(f"{name}: {done} of {found.tasks}" + (f", {skipped} of them skipped" if skipped else ""))
    for name, two in found.pairs.items():
        if two is not None:
            kappa = "not defined" if two.kappa is None else f"{two.kappa:.2f}"
            lines.append(f"{name}: the same verdict in {two.percent:.1f}% of {two.n}, Cohen's kappa {kappa}")
    if len(found.annotators) > 1 and found.fleiss is not None:
        lines.append(f"All annotators: Fleiss' kappa {found.fleiss:.2f}")
    columns = ("comparison", "win", "lose", "tie", "Δ [95%]", "n", "no verdict")
    rows = [_row(name, judged) for name, judged in found.comparisons.items()]
    return Section("What people said", "\n".join(lines), columns, rows)


def _row(name: str, judged: Judged | None) -> tuple[str, ...]:
    if judged is None:
        return (name, "", "", "", "", "0", "not judged yet")
    rate, missing = judged.rate, judged.missing
    delta = f"{rate.delta:+.1f} [{rate.low:+.1f}, {rate.high:+.1f}]"
    shares = (rate.win, rate.lose, 100 - rate.win - rate.lose)
    left_out = "; ".join(f"{count} {reason}" for reason, count in missing.items())
    return (name, *(f"{share:.1f}" for share in shares), delta, str(rate.n), left_out)
