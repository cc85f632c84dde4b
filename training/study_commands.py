"""`pit-train study` and `pit-train report` (docs/studies.md)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def study(
    configs: Annotated[list[Path], typer.Argument(help="YAML files, see training/configs/studies.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="A setting to change; repeatable.")
    ] = None,
    again: Annotated[bool, typer.Option(help="Make finished results anew, from the answers kept.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a judge that costs.")] = False,
) -> None:
    """Train what is missing, ask, judge, and write OUTPUT/NAME.json; the same command again resumes."""
    from rich.console import Console

    from training.judge_commands import confirmed
    from training.studies.config import load_study
    from training.studies.run import run_study

    studies = [load_study(path, settings or []) for path in configs]
    for path, one in zip(configs, studies, strict=True):
        options = [word for each in settings or [] for word in ("--set", each)]
        command = shlex.join(["pit-train", "study", str(path), *options])
        run_study(
            one, Console(), command=command, again=again, confirm=lambda question: confirmed(question, yes)
        )


def report(
    results: Annotated[list[Path], typer.Argument(help="What pit-train study wrote: runs/studies/*.json.")],
    output: Annotated[Path, typer.Option(help="A directory; the page is index.html, the text README.md.")],
    title: Annotated[str, typer.Option(help="Of the report.")] = "What PIT is worth",
) -> None:
    """Write one HTML page, and Markdown with its pictures, from results of studies. Asks nobody anything."""
    from rich.console import Console

    from training.results.report import write_report

    write_report(results, output, title, Console())
