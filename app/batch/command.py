"""The command `pit batch`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app import DEFAULT_URL
from app.commands import Key, fail

PARALLEL = 1000
STOPPED = 130


def batch(
    input: Annotated[
        Path, typer.Argument(help="JSON lines: custom_id and body, as OpenAI's batches have them.")
    ],
    output: Annotated[
        Path, typer.Argument(help="File to add the results to, or folder with --ray; made where missing.")
    ],
    endpoint: Annotated[
        str, typer.Option(help="Where lines without url go: /v1/improve, /v1/chat/completions, ...")
    ] = "/v1/improve",
    url: Annotated[
        list[str] | None, typer.Option(help="Server; repeatable  [default: http://127.0.0.1:8000]")
    ] = None,
    key: Key = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=PARALLEL, help="Requests at a time; of each actor with --ray.")
    ] = 8,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run on Ray Data: input is a file or folder of JSON lines or Parquet."),
    ] = False,
    actors: Annotated[int, typer.Option(min=1, help="Ray actors that send.")] = 2,
) -> None:
    """Send every line of INPUT to a running server, and add its result to OUTPUT.

    The same command again goes on where a stop or a kill has left it. Exit status 0: every line was answered;
    1: some lines have errors, or the server was lost.
    """
    from rich.console import Console

    from app.batch.local import send_file
    from app.batch.output import OutputError
    from app.batch.send import ENDPOINTS, InputError, Target, Unreachable

    if endpoint not in ENDPOINTS:
        raise fail(f"--endpoint {endpoint}: choose among {', '.join(ENDPOINTS)}")
    if not input.exists():
        raise fail(f"{input} does not exist")
    target = Target(tuple(url or [DEFAULT_URL]), endpoint, key, concurrency)
    console = Console(stderr=True)
    try:
        if ray:
            failed = _send_on_ray(input, output, target, actors, console)
        else:
            failed = send_file(input, output, target, console)
    except (OutputError, InputError) as error:
        raise fail(str(error)) from None
    except Unreachable as error:
        raise fail(f"{error}. The same command goes on from here.", status=1) from None
    except KeyboardInterrupt:
        raise fail("stopped. The same command goes on from here.", status=STOPPED) from None
    raise typer.Exit(1 if failed else 0)


def _send_on_ray(input: Path, output: Path, target: Any, actors: int, console: Any) -> int:
    from app.batch.send import InputError

    try:
        from app.batch.on_ray import send_on_ray
    except ImportError:
        raise InputError("--ray needs the package ray: pip install 'pit-serve[ray]'") from None
    return send_on_ray(input, output, target, actors, console)
