"""An evaluation's figures as tables: for the terminal (rich), as Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from training.analysis import Figures
from training.edit_analysis import EditFigures
from training.judges import Mean, WinRate
from training.judges.joint import JointFigures
from training.synthetic import FEEDBACK_TURN, REFINE_TURN, RUBRICS
from training.verdicts import Agreement, Bar, Controlled, Row


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and perhaps a table under it."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def show(sections: Sequence[Section], bars: Sequence[Bar], console: Console) -> None:
    """Print to the terminal."""
    for section in sections:
        console.print(f"\n[bold]{section.title}[/bold]", highlight=False)
        if section.text:
            console.print(section.text, style="dim", markup=False, highlight=False)
        if section.columns:
            table = Table(show_edge=False, pad_edge=False)
            for i, column in enumerate(section.columns):
                table.add_column(column, justify="right" if i else "left", no_wrap=True)
            for row in section.rows:
                table.add_row(*row)
            # Broken figures are unreadable: a table wider than the terminal runs over its edge. A console
            # makes nothing wider than itself.
            wide = Console(file=console.file, width=max(console.width, 200))
            wide.print(table, crop=False, no_wrap=True)
    if bars:
        console.print("\n[bold]Bars[/bold]")
    for bar in bars:
        console.print(str(bar), style="green" if bar.passed else "red", markup=False, highlight=False)


def markdown(title: str, sections: Sequence[Section], bars: Sequence[Bar]) -> str:
    """The same as a Markdown document."""
    lines = [f"# {title}"]
    if bars:
        lines += ["", "## Bars", "", *(f"- {bar}" for bar in bars)]
    for section in sections:
        lines += ["", f"## {section.title}"]
        if section.text:
            lines += ["", section.text]
        if section.columns:
            lines += ["", _line(section.columns), _line(["---", *("---:" for _ in section.columns[1:])])]
            lines += [_line(row) for row in section.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def as_json(settings: dict[str, Any], figures: Figures | EditFigures, bars: Sequence[Bar]) -> str:
    """Every figure, unrounded."""
    return json.dumps(
        {"settings": settings, "figures": asdict(figures), "bars": [asdict(b) for b in bars]}, indent=1
    )


# ---------------------------------------------------------------------------------------------------- gold


_COMPARISONS = (
    "{n} prompts{left_out}. Δ = win% − lose%, ties are the rest, with a 95% bootstrap interval over the "
    "prompts. PIT: the gated loop as users get it, after {k} iterations where none is named (no "
    "rejection ends it early); ungated: every candidate becomes the next reference. Self-Refine: the "
    "rubric with the highest mean score on these very prompts, chosen anew at each iteration count, "
    "which favours the baseline. Mean score in gold points with its interval. Δ at equal length: "
    "least-squares line of the verdict (+1, 0, −1) on the length difference in words, read at "
    "difference 0, interval by bootstrap."
)
_LOOP = (
    "Iteration 0 is the Original. Change: paired, from the iteration before. Better and worse: than the "
    "Original."
)
_TRUST = (
    " Below: does P(better) > ½ agree with the judge; ties of the judge are left out; calibration error "
    "in ten equal-width bins. Pairs of one prompt are not independent."
)
_EDITS = (
    "{n} drafts{left_out}. Judge: edit distance in characters to the nearest human rewrite, against the "
    "draft's own. Exact: the human text, letter by letter. Distance: mean of the drafts → after."
)

_JOINT = (
    "Mean over the drafts of (not toxic: 0 or 1) × (chrF to the nearest human rewrite) × (fluent: 0 or 1), "
    "times 100. All parts see words, not typing, and were fitted on the training file. Fluent: no fault that "
    "is new to the draft, by a classifier that finds {fluent:.1f}% of people's rewrites fluent and "
    "{broken:.1f}% of their broken copies not. The rule takes out the words that people took out of 90% of "
    "the training drafts."
)


def gold_sections(figures: Figures) -> list[Section]:
    """The report for data with a gold scorer."""
    return [
        *_gold_comparisons(figures),
        *_loops(figures),
        *_trust(figures.agreements, figures.label),
        *_costs(figures),
    ]


def _gold_comparisons(figures: Figures) -> Iterator[Section]:
    k = figures.headline
    yield Section(
        "Comparisons",
        _COMPARISONS.format(n=figures.examples, left_out=_left_out(figures.left_out), k=k),
        ("comparison", "win", "lose", "Δ [95%]", "mean", "mean of the other", "Δ at equal length", "words"),
        [
            (
                c.name, f"{c.rate.win:.1f}", f"{c.rate.lose:.1f}", _rate(c.rate), _mean(c.score),
                _mean(c.baseline_score), _rate(c.length_controlled),
                f"{c.words:.1f} / {c.baseline_words:.1f}",
            )
            for c in figures.comparisons
        ],
    )  # fmt: skip


def _loops(figures: Figures) -> Iterator[Section]:
    titles = {"pit": "PIT, ungated", "pit_gated": "PIT, gated"}
    for name, rows in figures.loops.items():
        text = _LOOP
        if name == "pit_gated":
            stops = ", ".join(f"{reason} {count}" for reason, count in sorted(figures.stops.items()))
            text += f" First rejected: share of runs that end here with patience 1. Stop reasons: {stops}."
        if name == next((each for each in figures.loops if each.startswith("self_refine")), ""):
            text += " Best rubric by iteration: " + ", ".join(figures.best_rubric) + "."
        columns = ["iteration", "mean score", "change", "Δ vs Original", "better %", "worse %", "accepted %"]
        gated = name == "pit_gated"
        yield Section(
            titles.get(name, f"Self-Refine, rubric {name.partition(':')[2]}"),
            text,
            columns + (["mean P(better)", "first rejected %"] if gated else []),
            [_loop_row(row, gated) for row in rows],
        )


def _loop_row(row: Row, gated: bool) -> list[str]:
    cells = [
        str(row.iteration), _mean(row.score), _signed(row.gain), _rate(row.rate),
        f"{row.better:.1f}" if row.iteration else "", f"{row.worse:.1f}" if row.iteration else "",
        f"{row.accepted:.1f}" if row.iteration else "",
    ]  # fmt: skip
    if gated:
        cells.append("" if row.win_probability is None else f"{row.win_probability:.3f}")
        cells.append("" if row.first_rejected is None else f"{row.first_rejected:.1f}")
    return cells


def _trust(agreements: dict[str, Agreement | None], label: dict[str, float]) -> Iterator[Section]:
    right, ece = 100 * label["accuracy"], label["ece"]
    text = f"Held-out pairs ({label['pairs']:.0f}) against their labels: {right:.1f}% right,"
    text += f" calibration error {ece:.3f}."
    if "label_agrees_with_gold" in label:
        share = 100 * label["label_agrees_with_gold"]
        text += f" The labels themselves agree with gold in {share:.1f}% of the untied pairs."
    yield Section(
        "Gap reward",
        text + _TRUST,
        ("pairs", "agree %", "calibration error", "n", "ties"),
        [
            (name, f"{100 * a.accuracy:.1f}", f"{a.ece:.3f}", str(a.pairs), str(a.ties))
            if a
            else (name, "", "", "0", "")
            for name, a in agreements.items()
        ],
    )


def _costs(figures: Figures) -> Iterator[Section]:
    yield Section(
        "Tokens for one prompt",
        "Without the Original that a system starts from. Read: what the models read, the part of it that the "
        "engine's prefix cache held beside it; what the gap reward reads is not counted.",
        ("system, iterations", "written", "read", "of it cached", "total", "mean score"),
        [
            (
                s.name,
                f"{s.written:.0f}",
                f"{s.read:.0f}",
                f"{s.cached:.0f}",
                f"{s.total:.0f}",
                f"{s.score:.3f}",
            )
            for s in figures.spent
        ],
    )
    yield Section(
        "What the responses say",
        "By the gold parser. Right: of the sentences that state a fact, the share with the right value.",
        ("system", "right %", "facts", "repeated", "coverage %", "words"),
        [
            (
                c.name,
                "" if c.right is None else f"{c.right:.1f}",
                str(c.facts),
                f"{c.repeated:.3f}",
                f"{c.coverage:.1f}",
                f"{c.words:.1f}",
            )
            for c in figures.content
        ],
    )
    rubrics = "\n".join(f"- rubric `{name}`: {text}" for name, text in RUBRICS.items())
    yield Section(
        "Self-Refine's prompts",
        "Two generations of the policy an iteration, in the same conversation, after the response.\n\n"
        f"- feedback turn: {FEEDBACK_TURN}\n- refine turn: {REFINE_TURN}\n{rubrics}",
    )


# ---------------------------------------------------------------------------------------------------- edits


def edit_sections(figures: EditFigures) -> list[Section]:
    """The report for drafts that people rewrote."""
    toxic = figures.toxicity_judge is not None
    columns = [
        "system, iterations",
        "closer %",
        "farther %",
        "equal %",
        "exact %",
        "unchanged %",
        "distance",
        "tokens",
    ]
    text = _EDITS.format(n=figures.examples, left_out=_left_out(figures.left_out))
    if figures.toxicity_judge is not None:
        q = figures.toxicity_judge
        text += (
            " Toxicity: a logistic regression fitted on the training file; on these pairs"
            f" {100 * q.accuracy:.1f}% of the texts and {100 * q.pair_accuracy:.1f}% of the pairs right."
            " Both: closer and less toxic."
        )
    rows = []
    for name, e in figures.edits.items():
        row = [f"{value:.1f}" for value in (e.closer, e.farther, e.equal, e.exact, e.unchanged)]
        row = [name, *row, f"{e.distance_before:.1f} → {e.distance_after:.1f}", f"{figures.tokens[name]:.0f}"]
        if toxic:
            row += [f"{e.toxicity_before:.3f} → {e.toxicity_after:.3f}", f"{e.both:.1f}"]
        rows.append(row)
    stops = ", ".join(f"{reason} {count}" for reason, count in sorted(figures.stops.items()))
    samples = "\n".join(
        "- " + "; ".join(f"{who}: {text!r}" for who, text in one.items()) for one in figures.samples
    )
    return [
        Section("Improved drafts", text, columns + (["P(toxic)", "both %"] if toxic else []), rows),
        *([_joint(figures.joint)] if figures.joint else []),
        *_trust(figures.agreements, figures.label),
        Section("Runs", f"Stop reasons of the gated runs: {stops}."),
        Section("The first drafts", samples),
    ]


def _joint(figures: JointFigures) -> Section:
    return Section(
        "Joint metric",
        _JOINT.format(fluent=figures.fluent, broken=figures.broken),
        ("rewrites", "not toxic %", "content (chrF)", "fluent %", "joint [95%]", "chrF to the draft"),
        [
            (
                name, f"{j.non_toxic:.1f}", f"{j.content:.1f}", f"{j.fluent:.1f}", _mean(j.joint),
                f"{j.kept:.1f}",
            )
            for name, j in figures.systems.items()
        ],
    )  # fmt: skip


def _left_out(reasons: dict[str, int]) -> str:
    return "".join(f"; {count} left out ({reason})" for reason, count in reasons.items())


def _mean(mean: Mean) -> str:
    return f"{mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _signed(mean: Mean | None) -> str:
    return "" if mean is None else f"{mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]"


def _rate(rate: WinRate | Controlled | None) -> str:
    return "" if rate is None else f"{rate.delta:+.1f} [{rate.low:+.1f}, {rate.high:+.1f}]"
