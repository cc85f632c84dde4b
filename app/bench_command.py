"""The command `pit bench`."""

from pathlib import Path
from typing import Annotated

import typer

from app import DEFAULT_URL
from app.commands import Key, fail


def bench(
    url: Annotated[str, typer.Option(help="The server to measure; one of yours.")] = DEFAULT_URL,
    key: Key = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="improve, improve-stream, chat or chat-stream; repeatable  [default: all]"),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests at a time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, max=100_000, help="Requests of each kind.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Time for each kind, at most.")] = 60.0,
    model: Annotated[str, typer.Option(help="Model of the chat requests: policy or pit.")] = "policy",
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Questions to ask, one a line; {n} becomes a number.")
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Improve a draft of the policy instead of a given reference.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of a response  [default: the checkpoint's]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a running server: requests and tokens a second, latency, time to the first event, errors."""
    from rich.console import Console

    from app import bench as measuring

    kinds = kind or list(measuring.KINDS)
    if unknown := set(kinds) - set(measuring.KINDS):
        raise fail(f"--kind {min(unknown)}: choose among {', '.join(measuring.KINDS)}")
    asked = [measuring.QUESTION]
    if questions is not None:
        try:
            asked = [line for line in questions.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            asked = []
        if not asked:
            raise fail(f"--questions {questions}: cannot be read, or holds no question; write one a line")
    load = measuring.Load(
        concurrency=concurrency,
        requests=requests,
        seconds=seconds,
        model=model,
        questions=tuple(asked),
        reference=None if draft else measuring.REFERENCE,
        options={} if max_tokens is None else {"max_tokens": max_tokens},
    )
    try:
        wanted = [one for one in measuring.KINDS if one in kinds]
        every_one = measuring.bench(url, key, load, wanted, Console(), as_json)
    except measuring.BenchError as error:
        raise fail(str(error), status=1) from None
    raise typer.Exit(0 if every_one else 1)
