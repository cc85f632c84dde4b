"""`pit-train report`: results of studies become index.html, README.md and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.errors import ConfigError
from training.results.markdown import markdown
from training.results.page import page
from training.results.plots import png
from training.studies.figures import read_result


def write_report(paths: Sequence[Path], output: Path, title: str, console: Console) -> None:
    """Write the report of these results into `output`; asks no model and no judge.

    Raises:
        DataError: one of them is no result.
        ConfigError: two results have one name, or matplotlib is missing.
    """
    results = [read_result(path) for path in paths]
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        raise ConfigError(f"results of one name: {', '.join(sorted(n for n in names if names.count(n) > 1))}")
    command = f"pit-train report {' '.join(map(str, paths))} --output {output}"
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("*.png"):
        old.unlink()  # of charts that are no more
    for result in results:
        for chart in result.figures.charts:
            (output / f"{result.name}-{chart.name}.png").write_bytes(png(chart))
    (output / "README.md").write_text(markdown(title, results, command), encoding="utf-8")
    (output / "index.html").write_text(page(title, results, command), encoding="utf-8")
    console.print(f"{output}: index.html, README.md")
