"""A report as one HTML page: no script, nothing fetched, readable in light and dark and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import yaml

from training.results.diff import as_html
from training.results.markdown import facts
from training.results.plots import svg
from training.studies.figures import Example, Result, Table, Value

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5d6670; --line: #d9dee3; --paper: #fff;
  --wash: #f5f7f9; --good: #0b7a4b; --bad: #b3261e; --ins: #d4f2e0; --del: #fbdcd9; --accent: #0a6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #333a41;
  --paper: #14171a; --wash: #1c2024; --good: #4cc38a; --bad: #ff8f85; --ins: #143d2a; --del: #4a1f1c;
  --accent: #5fb4ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 5rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { margin: 3.2rem 0 .3rem; font-size: 1.4rem; }
h2, h3 { line-height: 1.25; } h3 { margin: 2rem 0 .4rem; font-size: 1.05rem; }
p { max-width: 46rem; margin: .4rem 0; } .soft, .note { color: var(--soft); } .note { font-size: .88rem; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; } a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .8rem .34rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; min-width: 4rem; }
th:first-child, td:first-child { text-align: left; } 
.words td, .words th { text-align: left; white-space: normal; }
td small { color: var(--soft); font-size: .82em; margin-left: .25em; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
figure { margin: 1.4rem 0; } figure svg { width: 100%; max-width: 46rem; height: auto; display: block; }
figure svg text { font-family: inherit !important; } figcaption { color: var(--soft); font-size: .88rem; }
.example { background: var(--wash); border-left: 3px solid var(--line); padding: .6rem 1rem; margin: .7rem 0;
  border-radius: 0 6px 6px 0; max-width: 50rem; } .example p { margin: .2rem 0; }
ins { background: var(--ins); text-decoration: none; border-radius: 3px; padding: 0 .15em; }
del { background: var(--del); border-radius: 3px; padding: 0 .15em; }
pre, code { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
pre { background: var(--wash); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
@media print { body { max-width: none; } figure, .example { break-inside: avoid; } }
"""


def page(title: str, results: Sequence[Result], command: str) -> str:
    """The whole document."""
    links = "".join(f'<a href="#{escape(r.name)}">{escape(r.name)}</a>' for r in results)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Written by <code>{escape(command)}</code>.</p>',
        f"<nav>{links}</nav>",
        _bars(results),
        *(_study(result) for result in results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _bars(results: Sequence[Result]) -> str:
    bars = [(result, bar) for result in results for bar in result.figures.bars]
    if not bars:
        return ""
    rows = "".join(
        f'<tr><td><a href="#{escape(r.name)}">{escape(r.name)}</a></td><td>{escape(bar.name)}</td>'
        f"<td>{escape(bar.wanted)}</td><td>{escape(bar.figure)}</td>"
        f'<td class="{"met" if bar.passed else "missed"}">{"met" if bar.passed else "missed"}</td></tr>'
        for r, bar in bars
    )
    met = sum(bar.passed for _, bar in bars)
    head = "".join(f"<th>{name}</th>" for name in ("study", "bar", "wanted", "found", ""))
    return (
        f"<h2>Bars</h2><p>{met} of {len(bars)} met.</p>"
        f'<div class="scroll"><table class="words"><tr>{head}</tr>{rows}</table></div>'
    )


def _study(result: Result) -> str:
    figures = result.figures
    parts = [
        f'<h2 id="{escape(result.name)}">{escape(result.name)}</h2>',
        f"<p>{escape(result.question)}</p>",
    ]
    charts = [
        f"<figure>{svg(chart, f'{result.name}-{chart.name}')}"
        + (f"<figcaption>{escape(chart.text)}</figcaption>" if chart.text else "")
        + "</figure>"
        for chart in figures.charts
    ]
    # The first picture, then what it is made of: a reader looks before reading.
    parts += charts[:1]
    parts += [_table(table) for table in figures.tables]
    parts += charts[1:]
    if figures.examples:
        parts.append("<h3>Examples</h3>")
        parts += [_example(example) for example in figures.examples]
    return "\n".join([*parts, _provenance(result)])


def _table(table: Table) -> str:
    # "lose %" is one word to a reader.
    head = "".join(f"<th>{escape(column.replace(' %', chr(160) + '%'))}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    text = f'<p class="note">{escape(table.text)}</p>' if table.text else ""
    return (
        f'<h3>{escape(table.title)}</h3>{text}<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _cell(cell: str | Value) -> str:
    if isinstance(cell, str) or cell.low is None:
        return escape(str(cell))
    value, _, interval = str(cell).partition(" ")
    return f"{escape(value)}<small>{escape(interval)}</small>"


def _example(example: Example) -> str:
    scored = f"{example.before_score:.2f} → {example.after_score:.2f}".replace("-", "−")
    return (
        f'<div class="example"><p><b>{escape(example.title)}</b> <span class="soft">{scored}</span></p>'
        f'<p class="note">{escape(example.prompt)}</p><p>{as_html(example.before, example.after)}</p></div>'
    )


def _provenance(result: Result) -> str:
    hashes = "".join(
        f"<tr><td>{escape(seed)}</td><td>{escape(name)}</td><td><code>{escape(digest[:23])}</code></td></tr>"
        for seed, each in result.models.items()
        for name, digest in each.items()
    )
    settings = yaml.safe_dump(dict(result.settings), sort_keys=False, allow_unicode=True)
    lines = "".join(f"<li>{escape(line)}</li>" for line in facts(result))
    return (
        f"<h3>How it was made</h3><pre>{escape(result.command)}</pre><ul class='note'>{lines}</ul>"
        "<details><summary>Checkpoints</summary><table class='words'><tr><th>seed</th><th>model</th>"
        f"<th>content hash</th></tr>{hashes}</table></details>"
        f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>"
    )
