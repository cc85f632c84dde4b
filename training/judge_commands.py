"""`pit-train judge`: let people judge collected answers, and sum up what they said."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

judge = typer.Typer(no_args_is_help=True, help="Let people judge answers, blind.")


def confirmed(question: str, yes: bool) -> bool:
    """What a judge would cost is shown in any case; without a terminal nobody can be asked."""
    if yes or not sys.stdin.isatty():
        print(question if yes else f"{question}\nGive --yes to begin.", flush=True)
        return yes
    return typer.confirm(f"{question}. Begin?")


@judge.command()
def serve(
    answers: Annotated[
        list[Path], typer.Argument(help="texts.jsonl of evaluations; systems of several files are joined.")
    ],
    output: Annotated[Path, typer.Option(help="Where verdicts are kept; the same directory again goes on.")],
    compare: Annotated[
        list[str] | None, typer.Option(help='Which systems, as "PIT vs Original"; may be given again.')
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="The first so many of each comparison  [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order, and of who stands on the left.")] = 1,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The page asks for a name, not for a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8010,
) -> None:
    """Serve a page on which people compare two responses, without knowing whose they are; Ctrl-C ends it."""
    import socket

    import uvicorn
    from rich.console import Console

    from training.errors import ConfigError
    from training.judges.people import VerdictFile, keep_tasks, make_tasks, read_answers
    from training.judges.people_server import create_app

    tasks = make_tasks(read_answers(answers), compare or [], examples, seed)
    keep_tasks(output, tasks)
    local = host in ("127.0.0.1", "localhost", "::1")
    with VerdictFile(output) as verdicts:
        app = create_app(tasks, verdicts, ["127.0.0.1", "localhost"] if local else ["*"])
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # from now on a browser waits until the server takes it
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: {error.strerror}; give another one") from error
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        Console().print(
            f"{len(tasks.tasks)} contests at [bold]{url}[/bold], verdicts in {output}", highlight=False
        )
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


@judge.command()
def summary(
    directory: Annotated[Path, typer.Argument(help="The --output of pit-train judge serve.")],
    as_json: Annotated[bool, typer.Option("--json", help="Every figure as JSON.")] = False,
) -> None:
    """Win, lose and tie with 95% intervals, and how far the annotators agree."""
    from rich.console import Console

    from training.judges.people_summary import section, summarize
    from training.report import show

    found = summarize(directory)
    if as_json:
        print(json.dumps(asdict(found), ensure_ascii=False, indent=1))
    else:
        show([section(found)], (), Console())
