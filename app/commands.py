"""What the commands of `pit` share."""

from typing import Annotated

import typer

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
