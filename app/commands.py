"""What the commands of `pit` share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.client import Client

BAD_USE = 2
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", envvar="PIT_API_KEY", help="API key, where the server asks for one."),
]


def fail(message: str, status: int = BAD_USE) -> typer.Exit:
    """Print one readable line, and return the exception that ends the command."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(status)


def counted(number: int, one: str) -> str:
    """A number of things in words: `1 line`, `2 lines`."""
    return f"{number} {one}{'' if number == 1 else 's'}"


@contextmanager
def reached(url: str, key: str | None, status: int = 1) -> Iterator["Client"]:
    """A client of the server at `url`; what goes wrong with it in the body ends the command with one line
    and this status."""
    from app.client import Client
    from app.errors import AppError
    from app.terminal import said

    try:
        with Client(url, key) as client:
            yield client
    except AppError as error:
        raise fail(said(error), status) from None
