"""Write docs/api.md from the server's OpenAPI document, and docs/cli.md from the help of `pit` and
`pit-train`.

    make docs            write them
    python scripts/reference.py --check    fail where one is not up to date
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
API_HEAD = """# API reference

Every route of the server, from its OpenAPI document, which a running one gives at `/openapi.json` (and as a
page at `/docs`). What the fields mean, with examples: [improve.md](improve.md), [openai.md](openai.md),
[batches.md](batches.md), [feedback.md](feedback.md), [stored-runs.md](stored-runs.md). The events of a
stream: [improve.md](improve.md#the-stream).

Every error, on every route, is `{"error": {"message", "type", "param", "code"}}`, with an `x-request-id`
header; 429 and 503 have `Retry-After`. Routes with a scope ask for an [API key](keys.md) where the server has
keys. Unknown fields are refused.

This page is made by `make docs`.
"""
BAR = "\\|"
CLI_HEAD = """# Command line reference

What `--help` says of each command. Settings that have no option: [configuration.md](configuration.md).

This page is made by `make docs`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/api.md and docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    given = parser.parse_args()
    status = 0
    for name, page in PAGES.items():
        path, wanted = DOCS / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            continue
        if given.check:
            print(f"docs/{name} is not up to date: run make docs", file=sys.stderr)
            status = 1
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {name}")
    return status


def api() -> str:
    """docs/api.md."""
    from app.main import create_app
    from app.settings import Settings
    from app.web import reference

    document = create_app(Settings(database="none")).openapi()
    operations = reference.operations(document)
    parts = [API_HEAD, "## Routes\n\n| route | scope | |\n| --- | --- | --- |"]
    parts += [_row(f"`{one.method} {one.path}`", one.scope, one.first) for one in operations]
    for one in operations:
        parts += [f"\n### `{one.method} {one.path}`\n", one.text]
        if one.parameters:
            parts.append("\n| parameter | in | values | |\n| --- | --- | --- | --- |")
            parts += [_row(f"`{p.name}`", p.note, p.values, p.text) for p in one.parameters]
        parts += [f"\n{said}" for said in (*one.bodies, *one.answers)]
    parts.append("\n## Objects\n\nThose that the routes take and give, by name.")
    for model in reference.models(document):
        parts.append(f"\n### {model.name}\n")
        if model.text:
            parts.append(f"{model.text}\n")
        if model.values:
            parts.append(model.values)
            continue
        parts.append("| field | values | default | |\n| --- | --- | --- | --- |")
        parts += [_row(f"`{f.name}`", f.values, f.note, f.text) for f in model.fields]
    return "\n".join(parts) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', BAR) for cell in cells)} |"


def cli() -> str:
    """docs/cli.md."""
    import typer

    from app.cli import app as pit
    from training.cli import app as pit_train

    parts = [CLI_HEAD]
    for name, program in (("pit", pit), ("pit-train", pit_train)):
        command = typer.main.get_command(program)
        for path, text in _help(name, command, None):
            parts.append(f"{'##' if path == name else '###'} `{path}`\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def _help(path: str, command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    """The help of a command and of those below it, without rich's frames."""
    command.rich_markup_mode = None
    context = command.make_context(path.split()[-1], [], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = 100
    lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
    yield path, "\n".join(lines)
    for name, below in getattr(command, "commands", {}).items():
        yield from _help(f"{path} {name}", below, context)


PAGES: dict[str, Callable[[], str]] = {"api.md": api, "cli.md": cli}

if __name__ == "__main__":
    sys.exit(main())
