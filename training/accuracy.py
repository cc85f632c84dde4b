"""How often the reward models prefer what people preferred, on held-out pairs, beside two plain baselines.

In the pipeline this stands after the gap reward (`pit-train run --until gap_reward` is enough). All judge the
same pairs: the held-out ones that keep to the length budget. No stage trains on them; calibration reads them,
but it cannot change which of two responses a gap reward prefers. Beyond the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from training.baselines import Judged, bag_of_words, length
from training.calibrate import centred_gaps, orders
from training.chat import encode, reward_messages
from training.checkpoint import check_files
from training.config import RunConfig
from training.data import PreferencePair
from training.errors import CheckpointError, ConfigError
from training.gap_reward import score
from training.judges import Mean, bootstrap_mean
from training.lengths import fitting_pairs
from training.models import load_reading_tokenizer, load_reward_model
from training.paths import gap_reward_names
from training.prepare import read_part
from training.runtime import Worker


@dataclass(frozen=True)
class Row:
    """A judge's accuracy (a tie counts half), and the gap reward's minus its own, on the same pairs.

    Both with a 95% bootstrap interval over the pairs.
    """

    judge: str
    model: str
    accuracy: Mean
    gap_reward_ahead: Mean | None


@dataclass(frozen=True)
class Part:
    """Pairs of a part that were used, and those left out because they exceed the length budget."""

    pairs: int
    too_long: int


@dataclass(frozen=True)
class Accuracy:
    """The table, and what it was measured on. The baselines are fitted on `reward`, judged on `heldout`."""

    reward: Part
    heldout: Part
    rows: list[Row]


def accuracy(config: RunConfig, console: Console) -> Path:
    """Measure, print the table, write accuracy.json into the run's directory; return its path.

    Raises:
        CheckpointError: a reward model is not trained yet, or its files changed.
        ConfigError: it was trained with other settings.
        DataError: no held-out pair keeps to the length budget, or there is too little to fit a baseline on.
    """
    _check_run(config)
    logging.disable_progress_bar()  # of loading, which takes no time
    with console.status("judging held-out pairs"):
        found = measure(config)
    console.print(table(config.name, found))
    for row in found.rows:
        console.print(f"{row.judge}: {row.model}", style="dim", markup=False, highlight=False)
    for name, part in (("held-out", found.heldout), ("reward", found.reward)):
        text = f"{name} part: {part.pairs} pairs, {part.too_long} more exceed the length budget"
        console.print(text, style="dim", highlight=False)
    path = config.output / "accuracy.json"
    path.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    console.print(f"[bold]{path}[/bold]")
    return path


def measure(config: RunConfig) -> Accuracy:
    """The figures for a run whose reward models are trained."""
    worker = Worker(config, "accuracy", 0, 1, None)
    tokenizer = load_reading_tokenizer(config.output / gap_reward_names(config)[0])
    parts = {name: fitting_pairs(worker, tokenizer, name, report=False) for name in ("reward", "heldout")}
    training, pairs = parts["reward"], parts["heldout"]
    judges = {"gap reward (centred)": gap_reward(config, pairs)}
    if config.reward is not None:
        judges["pointwise reward"] = pointwise_reward(config, pairs)
    judges["length"] = length(training, pairs)
    judges["bag of words"] = bag_of_words(training, pairs, config.seed)
    sizes = {name: Part(len(kept), len(read_part(config, name)) - len(kept)) for name, kept in parts.items()}
    return Accuracy(**sizes, rows=rows(judges))


def rows(judges: dict[str, Judged]) -> list[Row]:
    """One row for each judge; the first is the one that the others are compared with."""
    right = {name: [_right(margin) for margin in judged.margins] for name, judged in judges.items()}
    first = next(iter(right.values()))
    return [
        Row(
            name,
            judged.model,
            bootstrap_mean(right[name]),
            bootstrap_mean([a - b for a, b in zip(first, right[name], strict=True)]) if i else None,
        )
        for i, (name, judged) in enumerate(judges.items())
    ]


def gap_reward(config: RunConfig, pairs: Sequence[PreferencePair]) -> Judged:
    """Margins of the centred gap, the ensemble's mean.

    Every other pair is judged with y_l as the candidate: centred by r_gap(y, y), a gap reward that prefers
    whatever is the candidate would else be right always.
    """
    names = gap_reward_names(config)
    # The members of an ensemble share one tokenizer.
    tokenizer = load_reading_tokenizer(config.output / names[0])
    models = [load_reward_model(config.output / name, config.seed) for name in names]
    asked, better = orders(pairs)
    centering = config.gap_reward.centering
    gaps = centred_gaps(models, tokenizer, asked, config.gap_turn, centering)
    margins = [gap if first else -gap for gap, first in zip(gaps, better, strict=True)]
    members = f", mean of {len(names)}" if len(names) > 1 else ""
    return Judged(margins, f"{centering} centring{members}")


def pointwise_reward(config: RunConfig, pairs: Sequence[PreferencePair]) -> Judged:
    """Margins r(x, y_w) − r(x, y_l)."""
    source = config.output / "reward"
    tokenizer, model = load_reading_tokenizer(source), load_reward_model(source, config.seed)
    chosen, rejected = (
        score(model, encode(tokenizer, conversations), tokenizer.pad_token_id)
        for conversations in (
            [reward_messages(pair.prompt, pair.chosen) for pair in pairs],
            [reward_messages(pair.prompt, pair.rejected) for pair in pairs],
        )
    )
    return Judged([a - b for a, b in zip(chosen, rejected, strict=True)], "Bradley-Terry")


def table(title: str, found: Accuracy) -> Table:
    """For the terminal, in percent with 95% intervals."""
    n = found.heldout.pairs
    shown = Table(title=f"{title}: accuracy on {n} held-out pairs, 95% intervals", title_justify="left")
    for column in ("judge", "accuracy", "gap reward ahead by"):
        shown.add_column(column, no_wrap=True)
    for row in found.rows:
        ahead = row.gap_reward_ahead
        shown.add_row(row.judge, _percent(row.accuracy), _percent(ahead, "+") if ahead else "")
    return shown


def _percent(mean: Mean, sign: str = "") -> str:
    value, low, high = (f"{100 * each:{sign}.1f}" for each in (mean.mean, mean.low, mean.high))
    return f"{value} [{low}, {high}]"


def _right(margin: float) -> float:
    return float(margin > 0) + 0.5 * float(margin == 0)


def _check_run(config: RunConfig) -> None:
    gaps = gap_reward_names(config)
    for name in [*gaps, *(["reward"] if config.reward is not None else [])]:
        directory = config.output / name
        if not directory.exists():
            raise CheckpointError(
                f"{directory}: not trained yet; run pit-train run CONFIG --until {gaps[-1]} first, "
                "with the same settings"
            )
        if check_files(directory)["config_hash"] != config.digest(name):
            raise ConfigError(
                f"{directory} was trained with other settings; give those, or train it with these first"
            )
