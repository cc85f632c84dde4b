"""Self-improvement that continues: the next improver from the current one and users' feedback.

`OUTPUT` is a finished run, generation 0. `OUTPUT/generations/N` is laid out like a run and trained from the
generation that was live when it was opened; `OUTPUT/live` is a link to the promoted one (absent: generation
0). A feedback file belongs to one generation: the same file goes on with it, another one opens the next.
Nothing is promoted without a comparison (promotion.py). Beyond the paper.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from training.checkpoint import check_files, content_hash, hash_of_files, sync_directory, write_json
from training.config import GenerationConfig, RunConfig
from training.errors import CheckpointError, ConfigError, TrainingError
from training.feedback import read_feedback
from training.judges import WinRate
from training.paths import OPENED, gap_reward_names
from training.pipeline import alone, run
from training.promotion import KINDS, decide
from training.runtime import run_stage

DECISION = "promotion.json"


def run_generation(config: RunConfig, feedback: Path, console: Console, *, retrain: bool = False) -> bool:
    """Train the generation of this feedback, or go on with it, and decide; return whether it is promoted.

    Raises:
        ConfigError: the run cannot go on with these settings.
        DataError: the feedback cannot be read, or is too little.
        CheckpointError: the run is not finished, or a checkpoint has changed.
        TrainingError: another generation is not finished, or a stage failed.
    """
    root = config.output
    if config.generation is not None:
        raise ConfigError("--from-feedback takes the configuration of the original run, not of a generation")
    if not (root / "improver").is_dir():
        raise CheckpointError(f"{root} holds no finished run; train it first: pit-train run CONFIG")
    if (root / "live").exists() and not (root / "live").is_symlink():
        raise ConfigError(f"{root / 'live'} is not the link that promotions replace; move it away")
    with alone(root):
        opened = _open(config, feedback)
        directory = root / "generations" / str(opened.number)
        decision = _decided(directory)
        if decision and decision["promoted"] and retrain:
            raise ConfigError(f"{directory} was promoted, servers load it; --retrain would replace it")
        child = next_config(config, opened)
        if not decision:
            _check_parent(opened)
        run(child, console, retrain=retrain)
        if not decision or decision["improver"] != content_hash(directory / "improver"):
            decision = _decide(child, console)
        if decision["promoted"] and not decision["linked"]:
            # In this order a kill leaves nothing that the same command would not mend, and a link that
            # somebody has set back later stays as it is.
            promote(root, opened.number)
            decision["linked"] = True
            _write(directory / DECISION, decision)
        show(decision, root, console)
        return bool(decision["promoted"])


def live(root: Path) -> Path:
    """The run directory of the generation that is live: the run itself until one is promoted.

    Raises:
        CheckpointError: the link points to no generation.
    """
    link = root / "live"
    if not link.is_symlink():
        return root
    target = Path(os.path.normpath(root / os.readlink(link)))
    if not target.is_dir():
        raise CheckpointError(f"{link} points to {target}, which is not there; point it to a generation")
    return target


def promote(root: Path, number: int) -> None:
    """Let `root/live` point to a generation; a reader sees the old link or the new one, never none."""
    temporary = root / f".live.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("generations") / str(number))
    temporary.replace(root / "live")
    sync_directory(root)


def next_config(config: RunConfig, generation: GenerationConfig) -> RunConfig:
    """The run's configuration as a later generation's: its own directory, start, and `feedback` sections.

    Raises:
        ConfigError: a section of `feedback` does not go with the run.
    """
    record = config.model_dump(mode="json")
    record["output"] = str(config.output / "generations" / str(generation.number))
    record["generation"] = generation.model_dump(mode="json")
    own = {
        name: record["feedback"][name]
        for name in ("sft_improver", "gap_reward", "rft_improver", "rl_improver", "dpo_improver")
        if record["feedback"][name] is not None
    }
    if "rl_improver" in own or "dpo_improver" in own:
        record |= {"rl_improver": None, "dpo_improver": None}
    try:
        return RunConfig.model_validate(record | own)
    except ValidationError as error:
        raise ConfigError(f"feedback: {error.errors()[0]['msg']}") from error


# ---------------------------------------------------------------------------------------------- opening


def _open(config: RunConfig, feedback: Path) -> GenerationConfig:
    """The generation of this file, a new one where no other has it."""
    root = config.output
    found = read_feedback(config, feedback)  # before anything is written: is it enough?
    before = generations(root)
    for opened in before:
        if opened.feedback == found.report.sha256:
            return opened.model_copy(update={"file": feedback})
    if before and not _decided(root / "generations" / str(before[-1].number)):
        last = root / "generations" / str(before[-1].number)
        raise TrainingError(
            f"{last} is not finished: run the command with its file ({before[-1].file}) again, "
            f"or delete the directory to give it up"
        )
    parent = live(root)
    opened = GenerationConfig(
        number=before[-1].number + 1 if before else 1,
        parent=parent,
        checkpoints=_checkpoints(config, parent),
        file=feedback,
        feedback=found.report.sha256,
    )
    directory = root / "generations" / str(opened.number)
    directory.mkdir(parents=True, exist_ok=True)
    record = opened.model_dump(mode="json") | {"parent": os.path.relpath(parent, root)}
    _write(directory / OPENED, record)
    return opened


def generations(root: Path) -> list[GenerationConfig]:
    """Every generation after the first run that was opened, in order."""
    found = []
    for path in (root / "generations").glob(f"*/{OPENED}"):
        record = json.loads(path.read_text(encoding="utf-8"))
        parent = Path(os.path.normpath(root / record["parent"]))
        found.append(GenerationConfig.model_validate(record | {"parent": parent}))
    return sorted(found, key=lambda opened: opened.number)


def _checkpoints(config: RunConfig, parent: Path) -> dict[str, str]:
    """Content hashes of what a generation starts from and keeps.

    Raises:
        CheckpointError: one is missing, damaged, or speaks another improve turn.
    """
    names = ["policy", "improver", *gap_reward_names(config)]
    names += ["base"] * (config.base.path is None) + ["reward"] * (config.reward is not None)
    manifests = {name: check_files(parent / name) for name in names}
    turn = manifests["improver"].get("improve_turn")
    if turn != config.improve_turn:
        raise CheckpointError(
            f"{parent / 'improver'} was trained with improve_turn {turn!r}, the configuration says "
            f"{config.improve_turn!r}"
        )
    if manifests["gap_reward"]["gap"] is None:
        raise CheckpointError(f"{parent / 'gap_reward'} is not calibrated: finish its run first")
    return {name: hash_of_files(manifest["files"]) for name, manifest in manifests.items()}


def _check_parent(opened: GenerationConfig) -> None:
    for name, known in opened.checkpoints.items():
        if content_hash(opened.parent / name) != known:
            raise CheckpointError(
                f"{opened.parent / name} has changed since generation {opened.number} was opened; "
                "put it back, or delete the generation's directory to begin it anew"
            )


# ---------------------------------------------------------------------------------------------- deciding


def _decided(directory: Path) -> dict[str, Any] | None:
    try:
        decision: dict[str, Any] = json.loads((directory / DECISION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return decision


def _decide(child: RunConfig, console: Console) -> dict[str, Any]:
    """Compare with the live improver and write promotion.json."""
    assert child.generation is not None
    with console.status("comparing the next improver with the live one"):
        figures = run_stage(child, "compare", "training.promotion:compare", lambda _: None)
    rates = {kind: WinRate(**figures[kind]["win_rate"]) for kind in KINDS}
    bars = decide(rates["feedback"], rates["original"], child.feedback.tolerance)
    decision = {
        "generation": child.generation.number,
        "promoted": all(bar.passed for bar in bars),
        "linked": False,
        "reasons": [asdict(bar) for bar in bars],
        "tolerance": child.feedback.tolerance,
        **figures,
        "improver": content_hash(child.output / "improver"),
        "parent": child.generation.checkpoints["improver"],
        "feedback": {"sha256": child.generation.feedback, **figures["feedback"]},
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    _write(child.output / DECISION, decision)
    return decision


def show(decision: dict[str, Any], root: Path, console: Console) -> None:
    """The figures as a table, then in one sentence what follows from them."""
    number = decision["generation"]
    title = f"generation {number} against the one before (judge: {decision['judge']})"
    table = Table(title=title, title_justify="left")
    for column in ("", "figures", "wanted", "holds"):
        table.add_column(column)
    for bar in decision["reasons"]:
        table.add_row(bar["name"], bar["figure"], bar["wanted"], "yes" if bar["passed"] else "no")
    for kind in KINDS:
        found = decision[kind]["gap_reward_accuracy"]
        text = (
            f"{found['live']:.1f}% live, {found['next']:.1f}% next, difference "
            f"[{found['low']:+.1f}, {found['high']:+.1f}], n = {found['n']}"
        )
        table.add_row(f"gap reward, {kind} pairs", text, "", "")
        if "gold" in decision[kind]:
            gold = decision[kind]["gold"]
            table.add_row(
                f"gold, {kind} prompts", f"{gold['live']:.2f} live, {gold['next']:.2f} next", "", ""
            )
    console.print(table)
    directory = root / "generations" / str(number)
    if not decision["promoted"]:
        missed = " and ".join(bar["name"] for bar in decision["reasons"] if not bar["passed"])
        console.print(
            f"[bold yellow]NOT promoted[/bold yellow]: {missed}. {live(root)} stays live; "
            f"the figures are in {directory / DECISION}"
        )
    elif live(root) == directory:
        console.print(
            f"[bold green]PROMOTED[/bold green]: {root / 'live'} is generation {number}; "
            "restart servers that were started with it"
        )
    else:
        console.print(f"generation {number} was promoted before; live is now {live(root)}")


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(temporary, record)
    temporary.replace(path)
    sync_directory(path.parent)
