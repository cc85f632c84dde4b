"""A report as Markdown; its pictures are files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from training.results.diff import as_markdown, plain
from training.studies.figures import Result, Table


def markdown(title: str, results: Sequence[Result], command: str) -> str:
    """The document; pictures are named STUDY-CHART.png."""
    lines = [f"# {title}", "", f"Written by `{command}`. Nothing here is written by hand."]
    lines += _bars(results)
    for result in results:
        lines += _study(result)
    return "\n".join(lines) + "\n"


def _bars(results: Sequence[Result]) -> list[str]:
    bars = [(result, bar) for result in results for bar in result.figures.bars]
    if not bars:
        return []
    rows = [
        (r.name, bar.name, bar.wanted, bar.figure, "met" if bar.passed else "**missed**") for r, bar in bars
    ]
    met = sum(bar.passed for _, bar in bars)
    head = ["", "## Bars", "", f"{met} of {len(bars)} met.", ""]
    return head + _table(("study", "bar", "wanted", "found", ""), rows)


def _study(result: Result) -> list[str]:
    lines = ["", f"## {result.name}", "", result.question]
    for table in result.figures.tables:
        lines += ["", f"### {table.title}", ""]
        lines += [table.text, ""] if table.text else []
        lines += _cells(table)
    for chart in result.figures.charts:
        lines += ["", f"![{chart.title}]({result.name}-{chart.name}.png)"]
        lines += ["", chart.text] if chart.text else []
    if result.figures.examples:
        lines += ["", "### Examples", "", "~~Gone~~, **new**; the judge's scores before and after."]
    for example in result.figures.examples:
        scored = f"{example.before_score:.2f} → {example.after_score:.2f}".replace("-", "−")
        lines += ["", f"**{example.title}** ({scored}). {plain(example.prompt)}", ""]
        lines += [f"> {as_markdown(example.before, example.after)}"]
    return [*lines, "", "### How it was made", "", *_provenance(result)]


def _provenance(result: Result) -> list[str]:
    study, run = result.settings["study"], result.settings["run"]
    lines = [f"    {result.command}", ""]
    lines += [f"- {line}" for line in facts(result)]
    lines += [f"- training: `{run['name']}`, settings of `{study['run']}`"]
    for seed, hashes in result.models.items():
        named = ", ".join(
            f"{name} `{digest.removeprefix('sha256:')[:12]}`" for name, digest in hashes.items()
        )
        lines.append(f"- seed {seed}: {named}")
    return lines


def facts(result: Result) -> list[str]:
    """What a reader must know of a result, in words: how many examples, which seeds, judge, cost, machine."""
    study, cost = result.settings["study"], result.cost
    found = [
        f"{study['examples']} examples (seed {study['example_seed']}), training seeds "
        f"{', '.join(map(str, study['seeds']))}, judge: {result.settings['judge']}",
    ]
    spent = f"{cost['seconds']:.0f} s in this study"
    if cost.get("answers"):
        written, read = cost["tokens_written"], cost["tokens_read"]
        spent += (
            f"; it reads {cost['answers']:.0f} answers of {written:,.0f} tokens written and {read:,.0f} read"
        )
        spent += ", those that another study asked for too"
    found.append(spent)
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    return [*found, f"{result.created}; {versions}"]


def _cells(table: Table) -> list[str]:
    return _table(table.columns, [[str(cell) for cell in row] for row in table.rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [_line(columns), _line(["---", *("---:" for _ in columns[1:])])]
    return lines + [_line(row) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return (
        "| "
        + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells)
        + " |"
    )
