"""Has the systems' texts judged, and reports it: win, lose, Δ with intervals, and judges beside each other.

In the pipeline this follows asking the systems (evaluate.py) and works for any judge behind the protocol; the
data's own judges have fuller reports (analysis.py, edit_analysis.py). What a judge says of each contest is
kept in verdicts.NAME.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from training.errors import ConfigError
from training.judges.agreement import TwoJudges, two_judges
from training.judges.choice import make_judge
from training.judges.protocol import Contest, Cost, Judge, Verdict, settings_hash, win_rate
from training.judges.settings import JudgeName
from training.judges.statistics import WinRate
from training.progress import progress_bar
from training.report import Section, markdown, show
from training.verdicts import Controlled, length_controlled

if TYPE_CHECKING:
    from training.config import RunConfig

OWN = ("gold", "edit", "edit+toxicity")
"""Judges of the data itself, with a fuller report."""

Confirm = Callable[[str], bool]
Verdicts = dict[str, list[Verdict]]
"""Comparison → a verdict for each example; examples that a judge was not given have none."""


@dataclass(frozen=True)
class Judgement:
    """One comparison by one judge. `missing`: contests without a verdict, by reason; mean words of both.

    `rate` and `length_controlled` are None where no contest has a verdict.
    """

    name: str
    rate: WinRate | None
    length_controlled: Controlled | None
    missing: dict[str, int]
    words: float
    baseline_words: float


@dataclass(frozen=True)
class JudgeFigures:
    """What one judge says, and what it cost."""

    judge: str
    settings: dict[str, Any]
    hash: str
    judgements: list[Judgement]
    cost: Cost


def judge_all(judge: Judge, contests: Mapping[str, Sequence[Contest]], confirm: Confirm) -> Verdicts:
    """Have every comparison judged, in one go; `confirm` is asked first where that means calls.

    Raises:
        ConfigError: not confirmed.
        TrainingError: as the judge does.
    """
    every = [contest for each in contests.values() for contest in each]
    estimate = judge.estimate(every)
    if estimate.calls and not confirm(f"judge {judge.name}: {estimate}, at most"):
        raise ConfigError(f"judge {judge.name} was not confirmed; nothing was asked")
    found = iter(judge.judge(every))
    return {name: [next(found) for _ in each] for name, each in contests.items()}


def figures_of(judge: Judge, contests: Mapping[str, Sequence[Contest]], verdicts: Verdicts) -> JudgeFigures:
    """The figures of a judge's verdicts."""
    return JudgeFigures(
        judge.name,
        dict(judge.settings),
        settings_hash(judge),
        [judgement(name, contests[name], verdicts[name]) for name in contests],
        judge.cost(),
    )


def judgement(name: str, contests: Sequence[Contest], verdicts: Sequence[Verdict]) -> Judgement:
    """What a judge's verdicts on one comparison come to; shapes (n,)."""
    words = [(len(contest.first.split()), len(contest.second.split())) for contest in contests]
    decided = [(v.value, a - b) for v, (a, b) in zip(verdicts, words, strict=True) if v.value is not None]
    missing: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.value is None:
            missing[verdict.reason] = missing.get(verdict.reason, 0) + 1
    controlled = (
        length_controlled([float(v) for v, _ in decided], [float(d) for _, d in decided]) if decided else None
    )
    return Judgement(
        name,
        win_rate(verdicts).rate if decided else None,
        controlled,
        missing,
        float(np.mean([a for a, _ in words])),
        float(np.mean([b for _, b in words])),
    )


def judge_comparisons(
    config: RunConfig, judges: Sequence[JudgeName], contests: Mapping[str, list[Contest]],
    output: Path, confirm: Confirm, console: Console,
) -> None:  # fmt: skip
    """Write what each judge says of the comparisons: report.NAME.md and .json, verdicts.NAME.jsonl.

    Of several judges judges.md too: how far they agree. The data's own judges have reports of their own.

    Raises:
        TrainingError: as `judge_all`; what other judges said is written.
    """
    llm = config.evaluation.llm
    verdicts: dict[str, Verdicts] = {}
    # What costs nothing first: it is kept whatever becomes of the others.
    for name in sorted(judges, key=lambda judge: judge not in OWN):
        limit = llm.examples if name == "llm" and llm is not None else None
        given = {comparison: each[:limit] for comparison, each in contests.items()}
        with progress_bar(console) as bar:
            task = bar.add_task(f"judge {name}", total=None)

            def advance(done: int, total: int, bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            judge = make_judge(name, config.evaluation, output, advance)
            verdicts[name] = judge_all(judge, given, partial(_confirmed, bar, confirm))
        if name in OWN:
            continue
        figures = figures_of(judge, given, verdicts[name])
        write_judged(output, given, verdicts[name], figures)
        _print(f"Evaluation of {config.name}", sections_of(figures), output / f"report.{name}.md", console)
    if len(judges) > 1:
        section = agreement_section(beside_each_other(verdicts))
        _print(f"Judges of {config.name}", [section], output / "judges.md", console)


def _confirmed(bar: Progress, confirm: Confirm, question: str) -> bool:
    """Ask without a bar that moves over the question."""
    bar.stop()
    found = confirm(question)
    bar.start()
    return found


def _print(title: str, sections: Sequence[Section], path: Path, console: Console) -> None:
    show(sections, (), console)
    path.write_text(markdown(title, sections, ()), encoding="utf-8")
    console.print(f"\n{path}", highlight=False)


# ---------------------------------------------------------------------------------------------------- report


def sections_of(figures: JudgeFigures) -> list[Section]:
    """The report of one judge."""
    text = "Δ = win% − lose%, ties are the rest, with a 95% bootstrap interval over the examples that have a"
    text += (
        " verdict. Δ at equal length: least-squares line of the verdict on the length difference in words,"
    )
    text += f" read at difference 0. Cost: {figures.cost}."
    settings = ", ".join(f"{name} {value}" for name, value in figures.settings.items() if value is not None)
    rows = [
        (
            one.name,
            *_win_lose_delta(one.rate),
            _delta(one.length_controlled) if one.length_controlled else "",
            str(one.rate.n) if one.rate else "0",
            "; ".join(f"{count} {reason}" for reason, count in one.missing.items()),
            f"{one.words:.1f} / {one.baseline_words:.1f}",
        )
        for one in figures.judgements
    ]  # fmt: skip
    columns = ("comparison", "win", "lose", "Δ [95%]", "Δ at equal length", "n", "no verdict", "words")
    return [Section(f"Judge {figures.judge}", f"{text} Settings: {settings or 'none'}.", columns, rows)]


def beside_each_other(
    verdicts: Mapping[str, Verdicts],
) -> dict[str, TwoJudges | None]:
    """For each two judges how far they agree, over all contests that both decided."""
    found = {}
    for one, other in combinations(verdicts, 2):
        values: list[list[int | None]] = [[], []]
        for name in verdicts[one]:
            for i, verdict in enumerate(verdicts[one][name]):
                match = verdicts[other].get(name, [])
                if i < len(match):
                    values[0].append(verdict.value)
                    values[1].append(match[i].value)
        found[f"{one} and {other}"] = two_judges(*values)
    return found


def agreement_section(found: Mapping[str, TwoJudges | None]) -> Section:
    """The table of judges beside each other."""
    rows = [
        (name, f"{a.percent:.1f}", "" if a.kappa is None else f"{a.kappa:.2f}", str(a.n))
        if a
        else (name, "", "", "0")
        for name, a in found.items()
    ]
    text = "Contests that both decided, ties included. Kappa: Cohen's; 0 is chance, 1 is full agreement."
    return Section("Judges beside each other", text, ("judges", "same verdict %", "kappa", "n"), rows)


def write_judged(
    output: Path, contests: Mapping[str, Sequence[Contest]], verdicts: Verdicts, figures: JudgeFigures
) -> None:
    """verdicts.NAME.jsonl and report.NAME.json."""
    with (output / f"verdicts.{figures.judge}.jsonl").open("w", encoding="utf-8") as file:
        for name, each in contests.items():
            for contest, verdict in zip(each, verdicts[name], strict=True):
                record = {"comparison": name, "id": contest.example.id, **asdict(verdict)}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    text = json.dumps(asdict(figures), indent=1, ensure_ascii=False)
    (output / f"report.{figures.judge}.json").write_text(text, encoding="utf-8")


def _win_lose_delta(rate: WinRate | None) -> tuple[str, str, str]:
    return ("", "", "") if rate is None else (f"{rate.win:.1f}", f"{rate.lose:.1f}", _delta(rate))


def _delta(rate: WinRate | Controlled) -> str:
    return f"{rate.delta:+.1f} [{rate.low:+.1f}, {rate.high:+.1f}]"
