"""`pit-train`: preference pairs in, a policy, an improver and a calibrated gap reward out."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.errors import TrainingError
from training.judge_commands import confirmed
from training.judge_commands import judge as judge_app
from training.machine import place
from training.study_commands import report, study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Look at preference data.")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, as a.b=value.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file, see training/configs.")],
    overrides: Overrides = None,
    retrain: Annotated[bool, typer.Option(help="Train stages again whose settings changed.")] = False,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage, such as gap_reward.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check everything and estimate memory and time; train and write nothing.")
    ] = False,
    from_feedback: Annotated[
        Path | None,
        typer.Option(
            help="Preference pairs that a server exported (chat_pairs): from the finished run train the next "
            "generation, compare it with the live one on held-out data, and promote it only if it is better."
        ),
    ] = None,
) -> None:
    """Run the whole pipeline; the same command again resumes a run that stopped.

    Started by torchrun or accelerate launch, all processes work on it together (docs/scale.md).
    """
    from rich.console import Console

    from training.config import load_config

    settings = load_config(config, overrides or [])

    def work(console: Console) -> None:
        # Each only where it is wanted: a run from scratch starts without torch, its workers have it.
        if from_feedback is None:
            from training.pipeline import run as run_pipeline

            run_pipeline(settings, console, retrain=retrain, until=until)
        else:
            from training.generations import run_generation

            run_generation(settings, from_feedback, console, retrain=retrain)

    if dry_run:
        from training.estimate import dry_run as estimate_run

        if _first():
            estimate_run(settings, Console())
    elif place() is None:
        work(Console())
    else:
        from training.launched import take_part

        take_part(work)


def _first() -> bool:
    """Whether this is the process that speaks: the only one, or the first of those that were launched."""
    here = place()
    return here is None or here.rank == 0


@app.command()
def accuracy(
    config: Annotated[Path, typer.Argument(help="The YAML file that the run was trained with.")],
    overrides: Overrides = None,
) -> None:
    """How often the rewards, a length rule and a bag of words agree with people on held-out pairs."""
    from rich.console import Console

    from training.accuracy import accuracy as run_accuracy
    from training.config import load_config

    run_accuracy(load_config(config, overrides or []), Console())


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="The YAML file that the run was trained with.")],
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option(min=1, help="Held-out examples.")] = 1_000,
    iterations: Annotated[int, typer.Option(min=1, max=20, help="Iterations of PIT.")] = 5,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight.")] = 24,
    url: Annotated[
        str | None, typer.Option(help="A running pit serve; without it one is started for the evaluation.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Of PIT and Self-Refine  [default: the checkpoints']")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples and of all sampling.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Where to write  [default: OUT/evaluation]")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="gold, edit, edit+toxicity, reward_model, llm or people; may be given again. Settings: "
            "evaluation.NAME in the configuration  [default: as the configuration says]"
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a judge that costs.")] = False,
    again: Annotated[bool, typer.Option(help="Set earlier answers aside and ask anew.")] = False,
) -> None:
    """Compare PIT, Self-Refine, best-of-4 and the data through the server; the same command again resumes."""
    from rich.console import Console

    from training.config import load_config
    from training.evaluate import Options
    from training.evaluate import evaluate as run_evaluation
    from training.judges.settings import JUDGES

    judges = tuple(name for name in JUDGES if name in (judge or []))
    if len(judges) < len(set(judge or [])):
        raise typer.BadParameter(f"choose of {', '.join(JUDGES)}", param_hint="--judge")
    options = Options(
        examples,
        iterations,
        concurrency,
        url,
        temperature,
        seed,
        output,
        judges,
        again,
        lambda question: confirmed(question, yes),
    )
    run_evaluation(load_config(config, overrides or []), options, Console())


@data_app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="JSON lines, a JSON array, Parquet, or a directory that `datasets` saved.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="chat_pairs, hh_rlhf, preference (TRL's types), summaries, fg_rlhf or defacto; "
            "auto goes by the first row."
        ),
    ] = "auto",
    others: Annotated[
        list[Path] | None, typer.Option("--against", help="Files that should share no prompt with it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False,
) -> None:
    """Read a file of preference pairs and report what it holds and what is left out."""
    from training.data import PairStream
    from training.formats import recognise

    def read(file: Path) -> PairStream:
        stream = PairStream(recognise(file) if format == "auto" else format, file)  # type: ignore[arg-type]
        for _ in stream:
            pass
        return stream

    found = read(path)
    shared = {str(other): found.shared_with(read(other)) for other in others or []}
    if as_json:
        print(json.dumps(found.report().as_dict() | {"shared": shared}, indent=1))
        return
    print(found.report().text())
    for name, counts in shared.items():
        prompts, drafts = counts["prompts"], counts["drafts"]
        print(f"  {prompts} of its prompts stand in {name} too, {drafts} with the same rejected response")


@data_app.command()
def sample(
    index: Annotated[int, typer.Option(min=0, help="Which pair.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the data set.")] = 2026,
) -> None:
    """Print one synthetic help-desk preference pair as JSON."""
    from training.synthetic import make_pairs

    pair = make_pairs(index + 1, seed)[index]
    print(
        json.dumps({"prompt": pair.prompt[-1]["content"], "chosen": pair.chosen, "rejected": pair.rejected})
    )


app.command()(study)
app.command()(report)


def main() -> None:
    """Entry point: a `TrainingError` is one readable message and exit status 2, never a traceback."""
    # Imported by peft where it is installed, it tells of faster kernels for CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except TrainingError as error:
        if _first():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
