"""`pit feedback`: say what was better, and get the preference pairs for training."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app import DEFAULT_URL
from app.commands import Key, counted, fail, reached

feedback = typer.Typer(
    help="What people preferred, and the pairs that it makes.", no_args_is_help=True, rich_markup_mode=None
)
Url = Annotated[str, typer.Option(help="Where the server is.")]
WHICH = "reference, response, or the number of an iteration"


@feedback.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write JSON lines.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    after: Annotated[
        int, typer.Option(min=0, help="Only pairs after this cursor, of an earlier export's last line.")
    ] = 0,
) -> None:
    """Write the preference pairs to FILE, for pit-train run CONFIG --from-feedback FILE. The file is there
    when it is whole, or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    lines = 0
    try:
        with reached(url, key) as client, part.open("wb") as out:
            for chunk in client.export(after):
                lines += chunk.count(b"\n")
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise fail(f"cannot write {file}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    typer.echo(f"{counted(lines, 'pair')} in {file}")


@feedback.command()
def add(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a stored run (pit runs lists them).")],
    preferred: Annotated[str | None, typer.Option(help=f"The better one: {WHICH}.")] = None,
    other: Annotated[str, typer.Option(help=f"What it is better than: {WHICH}.")] = "reference",
    rating: Annotated[int | None, typer.Option(min=1, max=5, help="How good --response is.")] = None,
    correction: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What --response should have been; - is the standard input."),
    ] = None,
    response: Annotated[str, typer.Option(help=f"What is rated or corrected: {WHICH}.")] = "response",
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Say which response of a run is better (--preferred), how good one is (--rating), or what it should have
    been (--correction)."""
    if sum(given is not None for given in (preferred, rating, correction)) != 1:
        raise fail("say one of --preferred, --rating and --correction")
    fields: dict[str, Any] = {"run": run}
    kind: Any = "comparison" if preferred else "rating" if rating else "correction"
    if preferred is not None:
        fields |= {"preferred": _which(preferred), "other": _which(other)}
    elif rating is not None:
        fields |= {"rating": rating, "response": _which(response)}
    elif correction is not None:
        fields |= {"text": _text(correction), "response": _which(response)}
    with reached(url, key) as client:
        typer.echo(client.feedback(kind, **fields).model_dump_json(indent=2))


def _which(name: str) -> str | int:
    return int(name) if name.isascii() and name.isdecimal() else name


def _text(file: Path) -> str:
    try:
        return (sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        raise fail(f"--correction {file}: cannot be read as text") from None
