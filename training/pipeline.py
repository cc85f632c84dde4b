"""The whole pipeline: the stages in order, resumed where a run stopped, and a table of their figures.

This file is the map: read `stages`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from training.checkpoint import check_files, read_manifest
from training.checks import check_data_files, check_models
from training.config import RlConfig, RunConfig, micro_batches
from training.errors import ConfigError, TrainingError
from training.machine import place
from training.paths import gap_reward_names, rft_names
from training.prepare import prepare_data
from training.references import check_references
from training.rollouts import check_rollouts
from training.runtime import Progress, run_stage, start_server
from training.sharding import check_sharding
from training.trackers import check_trackers


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: the checkpoint that it publishes, and the function that every worker runs."""

    name: str
    function: str
    meaning: str


def stages(config: RunConfig) -> list[Stage]:
    """Every model stage, in order."""
    if config.generation is not None:
        return _generation_stages(config)
    found = []
    if config.base.path is None:
        found.append(Stage("base", "training.base:train_base", "base model from scratch"))
    found.append(Stage("policy_sft", "training.sft:train_policy", "policy: supervised fine-tuning"))
    found.append(Stage("improver_sft", "training.sft:train_improver", "improver: supervised fine-tuning"))
    if config.reader is not None:
        found.append(Stage("reader", "training.reader:train_reader", "reader: reading exercises"))
    if config.reward is not None:
        found.append(Stage("reward", "training.reward:train_reward", "pointwise reward"))
    for name in gap_reward_names(config):
        found.append(Stage(name, "training.gap_reward:train_gap_reward", "gap reward"))
    if config.rl_policy is not None:
        found.append(Stage("policy", "training.rl:train_policy", "policy: RLOO on the reward"))
    else:
        found.append(Stage("policy", "training.sft:promote_policy", "policy: as after fine-tuning"))
    return found + _improver_stages(config)


def _generation_stages(config: RunConfig) -> list[Stage]:
    """A later generation trains gap reward and improver, and keeps what else they read (release.py)."""
    assert config.generation is not None
    keep = "training.release:keep"
    known = [name for name in ("base", "reward", "policy") if name in config.generation.checkpoints]
    kept = [Stage(name, keep, f"{name}: of the generation before") for name in known]
    return [
        *kept[:-1],
        Stage("improver_sft", "training.sft:train_improver", "improver: fine-tuning goes on, with feedback"),
        *(
            Stage(name, "training.gap_reward:train_gap_reward", "gap reward: goes on, with feedback")
            for name in gap_reward_names(config)
        ),
        kept[-1],
        *_improver_stages(config),
    ]


def _improver_stages(config: RunConfig) -> list[Stage]:
    meaning = "improver: fine-tuning on its best refinements"
    found = [Stage(name, "training.rft:train_improver", meaning) for name in rft_names(config)]
    if config.rl_improver is not None:
        meaning = "improver: RLOO on the gap reward, phases 0 and 1"
        return [*found, Stage("improver", "training.rl:train_improver", meaning)]
    return [*found, Stage("improver", "training.dpo:train_improver", "improver: DPO on judged refinements")]


def stages_until(config: RunConfig, last: str | None) -> list[Stage]:
    """The stages up to and including `last`; all of them without it.

    Raises:
        ConfigError: the run has no such stage; the message lists those it has.
    """
    found = stages(config)
    names = [stage.name for stage in found]
    if last is None:
        return found
    if last not in names:
        raise ConfigError(f"--until {last}: this run has no such stage; choose one of {', '.join(names)}")
    return found[: names.index(last) + 1]


def run(config: RunConfig, console: Console, *, retrain: bool = False, until: str | None = None) -> None:
    """Run every stage that is not finished; calling it again after a kill goes on from the last save.

    With `until`, no stage after that one is run or looked at.

    Raises:
        ConfigError: a finished stage was trained with other settings and `retrain` is off, or there is no
            stage `until`.
        TrainingError: a stage failed.
    """
    started = time.monotonic()
    check_settings(config)
    todo = stages_until(config, until)
    # Before anything is written: a refused run leaves the finished one as it is.
    finished = {stage.name for stage in todo if _finished(config, stage, retrain)}
    config.output.mkdir(parents=True, exist_ok=True)
    with alone(config.output):
        _run(config, console, todo, finished, retrain)
    console.print(f"[bold]{config.output}[/bold]: done in {_clock(time.monotonic() - started)}")


def _run(config: RunConfig, console: Console, todo: list[Stage], finished: set[str], retrain: bool) -> None:
    _save_config(config)
    if len(finished) < len(stages(config)):
        start_server(config)
    if not _data_ready(config) or retrain:
        console.print(prepare_data(config))
    seconds: dict[str, float] = {}
    retraining = False
    calibration: dict[str, Any] = {}
    with _bar(console) as bar:
        for stage in todo:
            if not retraining and stage.name in finished:
                shutil.rmtree(_stage_directory(config, stage), ignore_errors=True)
                bar.console.print(f"[dim]{stage.name}: finished before[/dim]")
            else:
                retraining = retrain
                seconds[stage.name] = _run_with_bar(config, stage, bar)
            if stage.name == gap_reward_names(config)[-1]:
                calibration = _calibrate(config, bar)
    console.print(summary(config, todo, seconds, calibration))


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory for this run; the operating system gives it back also after a kill."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(
                f"{directory}: another run is at work there; wait for it, stop it, or give another output=DIR"
            ) from None
        yield


def _run_with_bar(config: RunConfig, stage: Stage, bar: Bar) -> float:
    started = time.monotonic()
    _begin(config, stage)
    task = bar.add_task(stage.name, total=None, figures="starting")

    def show(progress: Progress) -> None:
        bar.update(task, completed=progress.done, total=progress.total, figures=progress.figures)

    run_stage(config, stage.name, stage.function, show)
    bar.remove_task(task)
    seconds = time.monotonic() - started
    left_out = _left_out(_last_metrics(config.output / "metrics.jsonl").get(stage.name, {}))
    bar.console.print(f"[green]{stage.name}[/green]: {stage.meaning}, {_clock(seconds)}{left_out}")
    shutil.rmtree(_stage_directory(config, stage), ignore_errors=True)
    return seconds


def _stage_directory(config: RunConfig, stage: Stage) -> Path:
    return config.output / "stages" / stage.name


def _begin(config: RunConfig, stage: Stage) -> None:
    """What a killed run has saved is gone on from only if it was saved under the same settings."""
    directory, digest = _stage_directory(config, stage), config.digest(stage.name)
    marker = directory / "settings.txt"
    if not marker.exists() or marker.read_text(encoding="utf-8") != digest:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        marker.write_text(digest, encoding="utf-8")


def _left_out(figures: dict[str, Any]) -> str:
    """What did not keep to the length budget, in words (lengths.py, base.py)."""
    if figures.get("too_long"):
        return (
            f"; {figures['too_long']} of {figures['pairs']} pairs are longer than the length budget, left out"
        )
    if figures.get("cut"):
        return f"; {figures['cut']} of {figures['documents']} documents cut at {figures['positions']} tokens"
    return ""


def _calibrate(config: RunConfig, bar: Bar) -> dict[str, Any]:
    gaps = [read_manifest(config.output / name)["gap"] for name in gap_reward_names(config)]
    if not all(gaps):
        figures = dict(run_stage(config, "calibrate", "training.calibrate:calibrate", lambda _: None))
        left_out = _left_out(_last_metrics(config.output / "metrics.jsonl")["calibrate"])
        bar.console.print(f"[green]calibrate[/green]: gap reward, on held-out pairs{left_out}")
        return figures
    return dict(gaps[0]["calibration"])


def check_settings(config: RunConfig) -> None:
    """What can be refused before any work.

    Raises:
        ConfigError: the launcher started another number of processes, a batch does not divide, a tracker is
            not there, vLLM cannot make the rollouts, weights cannot be divided as asked, or a model has no
            room for the length budget.
        CheckpointError: a model cannot be loaded or has no chat template.
        DataError: a data file is not there.
    """
    check_processes(config)
    check_data_files(config)
    check_sharding(config)
    check_batches(config)
    check_trackers(config)
    check_rollouts(config)
    check_references(config)
    check_models(config)


def check_processes(config: RunConfig) -> None:
    """A launcher decides how many processes there are; `processes` may not say otherwise."""
    launched = place()
    if launched is not None and config.processes not in ("auto", launched.size):
        raise ConfigError(
            f"processes: the configuration says {config.processes}, the launcher started {launched.size}; "
            "set processes=auto, or start as many"
        )


def check_batches(config: RunConfig) -> None:
    """Say before training that a batch does not divide between the processes, not hours into it."""
    rewards = ("reader", "reward", "gap_reward")
    improver = ("rft_improver", "rl_improver", "dpo_improver")
    for name in ("base", "sft_policy", "sft_improver", *rewards, "rl_policy", *improver):
        section = getattr(config, name)
        if section is None or (name == "base" and section.optimizer is None):
            continue
        if isinstance(section, RlConfig):
            batch, micro, key = section.prompts * section.samples, section.micro_batch, "prompts × samples"
        else:
            batch, micro, key = section.optimizer.batch, section.optimizer.micro_batch, "optimizer.batch"
        try:
            micro_batches(batch, config.process_count, micro)
        except ConfigError as error:
            raise ConfigError(f"{name}.{key}: {error}") from None


def finished(config: RunConfig, *, retrain: bool = False) -> bool:
    """Whether every stage is trained with these settings. Raises `ConfigError` where one has others and
    `retrain` is off."""
    return all([_finished(config, stage, retrain) for stage in stages(config)])


def _finished(config: RunConfig, stage: Stage, retrain: bool) -> bool:
    directory = config.output / stage.name
    if not directory.exists():
        return False
    manifest = check_files(directory)
    if manifest["config_hash"] == config.digest(stage.name):
        return True
    if not retrain:
        raise ConfigError(
            f"{directory} was trained with other settings. Give another output (output=DIR) to keep it, "
            "or --retrain to train this stage and the ones after it again"
        )
    return False


def _data_ready(config: RunConfig) -> bool:
    marker = config.output / "data" / "settings.json"
    return marker.exists() and marker.read_text(encoding="utf-8") == config.digest("base")


def _save_config(config: RunConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (config.output / "config.yaml").write_text(text, encoding="utf-8")


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description:>14}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        transient=True,
        # What a library prints belongs into the stage's log (runtime.py, launched.py).
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def summary(
    config: RunConfig, done: list[Stage], seconds: dict[str, float], calibration: dict[str, Any]
) -> Table:
    """A short table: each stage, its time, its last figures."""
    table = Table(title=config.name, title_justify="left")
    for column in ("stage", "time", "figures"):
        table.add_column(column)
    last = _last_metrics(config.output / "metrics.jsonl")
    shown = ("loss", "eval_counts", "accuracy", "reward", "kl", "gold", "copied", "truncated")
    for stage in done:
        known = last.get(stage.name, {})
        text = "  ".join(f"{name} {known[name]:.3f}" for name in shown if known.get(name) is not None)
        table.add_row(stage.name, _clock(seconds[stage.name]) if stage.name in seconds else "before", text)
    figures = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in calibration.items())
    if calibration:
        table.add_row("calibration", "", "  ".join(figures))
    return table


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            last.setdefault(record["stage"], {}).update(record)
    return last
