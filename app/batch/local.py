"""`pit batch` on this machine: from the input file to the output file, with a progress bar."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.batch.output import Output, succeeded, summary
from app.batch.send import InputError, Request, Sender, Target, Unreachable, read_line
from app.commands import counted


def send_file(input: Path, output: Path, target: Target, console: Console) -> int:
    """Send what is not in the output yet; how many lines of the output hold an error. Raises `InputError`,
    `OutputError` and `Unreachable`."""
    total = _check(input, target.endpoint)
    with Output(output) as found:
        if found.done:
            console.print(f"{len(found.done)} of {counted(total, 'line')} done already", highlight=False)
        asyncio.run(_send(input, found, target, total, console))
        console.print(summary(len(found.done) - found.failed, found.failed, output))
        return found.failed


async def _send(input: Path, output: Output, target: Target, total: int, console: Console) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[errors]}"))
    todo = _todo(input, target.endpoint, output.done)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        errors = counted(output.failed, "error")
        task = progress.add_task("", total=total, completed=len(output.done), errors=errors)
        async with Sender(target) as sender:

            async def work() -> None:
                for request in todo:
                    output.write(request if isinstance(request, str) else await sender.answer(request))
                    errors = counted(output.failed, "error")
                    progress.update(task, completed=len(output.done), errors=errors)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(target.concurrency):
                        group.create_task(work())
            except* Unreachable as several:
                raise several.exceptions[0] from None


def _todo(input: Path, endpoint: str, done: set[str]) -> Iterator[Request | str]:
    """The requests, and the results of lines that are none, that the output does not hold."""
    for number, raw in _numbered(input):
        found = read_line(raw, number, endpoint)
        custom_id = succeeded(found)[0] if isinstance(found, str) else found.custom_id
        if custom_id not in done:
            yield found


def _check(input: Path, endpoint: str) -> int:
    """How many lines there are. Raises `InputError` where two have one custom_id: the results could not be
    told apart."""
    seen: dict[str, int] = {}
    for number, raw in _numbered(input):
        found = read_line(raw, number, endpoint)
        custom_id = succeeded(found)[0] if isinstance(found, str) else found.custom_id
        if (first := seen.setdefault(custom_id, number)) != number:
            raise InputError(f"{input}: line {number} has the custom_id of line {first}; give each its own")
    if not seen:
        raise InputError(f"{input} has no lines")
    return len(seen)


def _numbered(input: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1. Raises `InputError`."""
    try:
        with input.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InputError(f"cannot read {input}: {error.strerror}") from None
