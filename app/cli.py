"""`pit`: serve, improve, batch, doctor, runs, replay, feedback, keys, db, bench, version. Everything slow is
imported inside the command that needs it."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from app import DEFAULT_URL, __version__
from app.batch.command import batch
from app.bench_command import bench
from app.commands import BAD_USE, Key, fail, reached
from app.feedback_commands import feedback
from app.key_commands import keys

app = typer.Typer(
    help="Serve a PIT policy and improve responses with it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the brackets of the help texts are brackets
    pretty_exceptions_enable=False,
)
PASSING_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that take --vllm-NAME too."""


def vllm_options(arguments: list[str]) -> dict[str, Any]:
    """`--vllm-NAME VALUE`, `--vllm-NAME=VALUE`, and `--vllm-NAME` alone for true. Fails for anything else."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        name = option.removeprefix("--vllm-").replace("-", "_")
        if not option.startswith("--vllm-") or not name:
            raise fail(f"there is no option {option!r}; --help lists them")
        if equals:
            found[name] = value
        else:
            found[name] = rest.pop(0) if rest and not rest[0].startswith("--") else True
    return found


@app.command(context_settings=PASSING_ON)
def serve(
    context: typer.Context,
    policy: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoint of the policy: it drafts.")
    ] = None,
    improver: Annotated[Path | None, typer.Option(metavar="DIR", help="Checkpoint of the improver.")] = None,
    gap_reward: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoint of the gap reward: it decides what is accepted."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model under the adapters of policy and improver: one engine."),
    ] = None,
    policy_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Upstream server that has the policy; repeatable."),
    ] = None,
    improver_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Upstream server that has the improver; repeatable."),
    ] = None,
    gap_reward_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="vLLM pooling server that has the gap reward; repeatable."),
    ] = None,
    policy_model: Annotated[
        str | None, typer.Option(help="The policy's name upstream  [default: the first]")
    ] = None,
    improver_model: Annotated[
        str | None, typer.Option(help="The improver's name upstream  [default: the first]")
    ] = None,
    gap_reward_model: Annotated[
        str | None, typer.Option(help="The gap reward's name upstream  [default: the first]")
    ] = None,
    improve_turn: Annotated[
        str | None, typer.Option(help="Sentence that asks for an improvement, where no pit.json says it.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of settings; options and PIT_* variables win over it."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on  [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 picks a free one  [default: 8000]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16  [default: auto]")
    ] = None,
    kv_cache_gib: Annotated[
        int | None, typer.Option(help="Cache of each engine on a CPU, in GiB  [default: 1]")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences decoded at a time  [default: 64]")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="What runs the gap reward: auto, transformers, vllm  [default: auto]")
    ] = None,
    speculative: Annotated[
        str | None, typer.Option(help="ngram: draft tokens by looking up the reference  [default: none]")
    ] = None,
    engine_start: Annotated[str | None, typer.Option(help="fork or spawn  [default: fork]")] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Check hashes and golden samples  [default: verify]"),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where runs are kept: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME, or none"
            "  [default: a file in ~/.local/state/pit-serve]",
        ),
    ] = None,
    store: Annotated[
        bool | None,
        typer.Option("--store/--no-store", help="Keep runs whose request does not say  [default: store]"),
    ] = None,
    require_keys: Annotated[
        str | None,
        typer.Option(help="Ask for API keys: auto, always or insecure-never (pit keys)  [default: auto]"),
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Requests answered at a time; more wait  [default: 1000]")
    ] = None,
    limits_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Redis in which several servers count limits  [default: none]"),
    ] = None,
    tool_call_parser: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="vLLM's parser of tool calls, as hermes  [default: no tools]"),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="One more name of model policy or pit; may be repeated."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error  [default: warning]")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json  [default: text]")] = None,
    access_log: Annotated[
        bool | None,
        typer.Option("--access-log/--no-access-log", help="A line in the log a request  [default: yes]"),
    ] = None,
    engine_metrics: Annotated[
        bool | None,
        typer.Option(
            "--engine-metrics/--no-engine-metrics", help="vLLM's own metrics at /metrics too  [default: no]"
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Send traces there (OTLP over HTTP)  [default: none]")
    ] = None,
) -> None:
    """Serve checkpoints over HTTP: /v1/improve, /v1/chat/completions, /v1/completions, /v1/score,
    /health/ready, /metrics.

    --vllm-NAME VALUE sets an argument of vLLM's engine, as --vllm-max-num-batched-tokens 4096.
    """
    from rich.console import Console

    from app.errors import CheckpointError, StoreError
    from app.logs import configure_logging
    from app.server import serve as run_server
    from app.settings import SettingsError, load_settings

    given = {
        name: value
        for name, value in locals().items()
        if name in serve.__annotations__ and name not in ("context", "config") and value != []
    }
    try:
        given["vllm"] = vllm_options(context.args) or None
        settings = load_settings(config, **given)
        configure_logging(settings)
        status = run_server(settings, Console())
    except (SettingsError, CheckpointError, StoreError) as error:
        raise fail(str(error)) from None
    raise typer.Exit(status)


@app.command()
def improve(
    question: Annotated[str, typer.Argument(help="The user's question; - reads it from standard input.")],
    reference: Annotated[
        str | None, typer.Option(help="The response to improve. Without it the policy drafts one.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Text to put before the question.")] = None,
    url: Annotated[str, typer.Option(help="Where the server is.")] = DEFAULT_URL,
    key: Key = None,
    max_iterations: Annotated[
        int | None, typer.Option(help="Iterations at most  [server's default: 3]")
    ] = None,
    candidates: Annotated[int | None, typer.Option(help="Candidates in each iteration  [default: 1]")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="pit, self_refine or best_of_n  [default: pit]")
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(help="off, best_effort or required  [default: best_effort]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same run.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature  [default: the checkpoint's]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length of a response  [default: the checkpoint's]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the server's answer as JSON, without progress.")
    ] = False,
) -> None:
    """Improve a response from the terminal: every iteration as a coloured diff."""
    from app.terminal import show_run

    text = sys.stdin.read() if question == "-" else question
    options: dict[str, Any] = {
        "max_iterations": max_iterations,
        "candidates": candidates,
        "strategy": strategy,
        "scoring": scoring,
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens,
    }
    given = {name: value for name, value in options.items() if value is not None}
    asked = f"{context} {text}" if context else text
    with reached(url, key) as client:
        if as_json:
            typer.echo(client.improve(asked, reference, **given).model_dump_json(indent=2))
        else:
            show_run(client.stream(asked, reference, **given))


def _doctor(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of settings.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Start the engines too, and try their golden samples.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    **given: Any,
) -> None:
    """Check the machine, the packages, the checkpoints and the settings for pit serve, and say what to mend.

    Takes the options of pit serve. Exit status 1: something has to be mended.
    """
    from rich.console import Console

    from app.doctor import examine
    from app.doctor.report import show

    given = {name: value for name, value in given.items() if value != []}
    given["vllm"] = vllm_options(context.args) or None
    healthy = show(examine(config, given, run_engines=deep), Console(), as_json)
    raise typer.Exit(0 if healthy else 1)


def _with_the_options_of(command: Callable[..., None], function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the parameters of `command` in place of its **keywords, for Typer to read."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {parameter.name for parameter in own}
    others = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name not in taken and parameter.annotation is not typer.Context
    ]
    parameters = [*others, *(p.replace(kind=p.KEYWORD_ONLY) for p in own)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


app.command()(batch)
app.command("doctor", context_settings=PASSING_ON)(_with_the_options_of(serve, _doctor))


@app.command()
def runs(
    url: Annotated[str, typer.Option(help="Where the server is.")] = DEFAULT_URL,
    key: Key = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="RUN", help="Only runs before this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")] = False,
) -> None:
    """List the latest stored runs."""
    from app.replay import list_runs

    with reached(url, key) as client:
        list_runs(client, limit, after, as_json)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a stored run (pit runs lists them).")],
    url: Annotated[str, typer.Option(help="Where the server is.")] = DEFAULT_URL,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the difference as JSON.")] = False,
) -> None:
    """Run a stored run again with its seed and show the difference. Exit status 0: identical; 1: it differs;
    2: it could not be run."""
    from app.replay import replay_in_terminal

    with reached(url, key, BAD_USE) as client:
        identical = replay_in_terminal(client, run, as_json)
    raise typer.Exit(0 if identical else 1)


db = typer.Typer(help="The database of stored runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db, name="db")
app.add_typer(keys, name="keys")
app.add_typer(feedback, name="feedback")


@db.command()
def upgrade(
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="The database  [default: the setting's]")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of settings.")] = None,
) -> None:
    """Bring the database's schema to this version. pit serve does it itself where the database is SQLite."""
    import asyncio

    from app.errors import StoreError
    from app.settings import SettingsError, load_settings
    from app.store.database import upgrade_database

    try:
        settings = load_settings(config, database=database)
        typer.echo(asyncio.run(upgrade_database(settings.database)))
    except (SettingsError, StoreError) as error:
        raise fail(str(error)) from None


app.command()(bench)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"pit-serve {__version__}")


def main() -> None:
    """The console script `pit`."""
    app()


if __name__ == "__main__":
    main()
