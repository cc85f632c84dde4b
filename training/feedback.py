"""Users' feedback as training data: the pairs that a server exported, split like any others, with replay.

In the pipeline this stands where prepare.py stands in the first run: it writes the same four files, so that
every stage reads them alike. Beyond the paper.

`data/feedback/` holds the feedback alone; `data/{sft,reward,rl}.jsonl` hold it together with pairs of the
generations before, `heldout.jsonl` with the run's own held-out pairs; `data/original/heldout.jsonl` is these.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config import RunConfig
from training.data import LoadReport, PreferencePair, load_pairs, write_pairs
from training.errors import DataError
from training.helpdesk import parse_question
from training.paths import ancestors, original_run
from training.split import one_a_key, split_by_prompt, without_keys_of

PARTS = ("sft", "reward", "rl")
FEWEST_HELD_OUT = 10
"""So many held-out prompts at least: fewer say nothing about which improver is better."""


@dataclass(frozen=True)
class Feedback:
    """The usable pairs by part (sft, reward, rl, heldout), and what became of the others.

    `held_out_before`: left out because an earlier generation keeps their prompts for comparisons;
    `foreign`: left out because they are no help-desk prompts, where the run is about these.
    """

    parts: dict[str, list[PreferencePair]]
    report: LoadReport
    held_out_before: int
    foreign: int

    def text(self) -> str:
        """The report for a terminal."""
        lines = [self.report.text()]
        if self.held_out_before:
            lines.append(f"  {self.held_out_before} left out, their prompts are held out for comparisons")
        if self.foreign:
            lines.append(f"  {self.foreign} left out, not a prompt of the help desk")
        return "\n".join(lines)


def read_feedback(config: RunConfig, file: Path) -> Feedback:
    """Read and split a file of `chat_pairs`; a prompt falls into the same part in every generation.

    Raises:
        DataError: a line breaks the format, or there are too few usable pairs; the message says how many are
            needed.
    """
    data, settings = config.data, config.feedback
    loaded = load_pairs("chat_pairs", file)
    pairs = [pair for pair in loaded.pairs if data.format != "helpdesk" or _is_help_desk(pair)]
    foreign = len(loaded.pairs) - len(pairs)
    usable = without_keys_of(pairs, _held_out(config), data.split_key)
    if len(usable) < settings.minimum:
        raise DataError(
            f"{len(usable)} usable pairs of feedback ({len(pairs) - len(usable)} more are held out already, "
            f"{foreign} are not of the help desk), and at least {settings.minimum} are needed",
            path=file,
            advice=f"Collect {settings.minimum - len(usable)} more, or lower feedback.minimum",
        )
    shares = (1 - settings.heldout, settings.heldout)
    training, heldout = split_by_prompt(usable, shares, config.seed + 1, data.split_key)
    prompts = len(one_a_key(heldout, data.split_key))
    if prompts < FEWEST_HELD_OUT:
        raise DataError(
            f"only {prompts} prompts of feedback are held out, and at least {FEWEST_HELD_OUT} are needed",
            path=file,
            advice="Collect more, or raise feedback.heldout",
        )
    # The same prompt was held out before too, unless the shares have changed since.
    before = [pair for run in ancestors(config) for pair in _read(run / "data" / "feedback", "heldout")]
    kept = without_keys_of(training, before, data.split_key)
    parts = split_by_prompt(kept, data.split, config.seed, data.split_key)
    return Feedback(
        parts=dict(zip((*PARTS, "heldout"), (*parts, heldout), strict=True)),
        report=loaded.report,
        held_out_before=len(pairs) - len(usable) + len(training) - len(kept),
        foreign=foreign,
    )


def prepare_feedback(config: RunConfig) -> str:
    """Write a later generation's data; return what a person should know about it."""
    assert config.generation is not None
    feedback = read_feedback(config, config.generation.file)
    directory, heldout = config.output / "data", feedback.parts["heldout"]
    original = _read(original_run(config) / "data", "heldout")
    parts: dict[str, list[PreferencePair]] = {}
    for part in PARTS:
        earlier = [_read(original_run(config) / "data", part)]
        earlier += [_read(run / "data" / "feedback", part) for run in ancestors(config)]
        pools = [without_keys_of(pool, heldout, config.data.split_key) for pool in earlier]
        count = round(config.feedback.replay * len(feedback.parts[part]))
        seed = f"replay-{config.seed}-{config.generation.number}-{part}"
        parts[part] = [*feedback.parts[part], *replay(pools, count, seed)]
    # Shuffled: calibration takes the first half to fit and the second to measure.
    parts["heldout"] = [*heldout, *original]
    random.Random(config.seed).shuffle(parts["heldout"])
    for folder, content in (
        ("", parts), ("feedback", feedback.parts), ("original", {"heldout": original}),
    ):  # fmt: skip
        (directory / folder).mkdir(parents=True, exist_ok=True)
        for part, pairs in content.items():
            write_pairs(directory / folder / f"{part}.jsonl", pairs)
    sizes = {part: len(pairs) for part, pairs in parts.items()}
    own = {part: len(pairs) for part, pairs in feedback.parts.items()}
    record = {
        "files": [feedback.report.as_dict()],
        "pairs": sizes,
        "feedback": own,
        "held_out_before": feedback.held_out_before,
        "foreign": feedback.foreign,
    }
    (directory / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    # Written last: its presence says that the data is whole.
    (directory / "settings.json").write_text(config.digest("base"), encoding="utf-8")
    counts = ", ".join(f"{part} {own[part]} of {sizes[part]}" for part in sizes)
    return f"{feedback.text()}\nfeedback among all pairs: {counts}"


def replay(pools: Sequence[Sequence[PreferencePair]], count: int, seed: str) -> list[PreferencePair]:
    """`count` pairs, as evenly from every pool (an earlier generation each) as their sizes allow."""
    rng = random.Random(seed)
    waiting = [rng.sample(pool, len(pool)) for pool in pools]
    drawn: list[PreferencePair] = []
    while len(drawn) < count and any(waiting):
        for pool in waiting:
            if pool and len(drawn) < count:
                drawn.append(pool.pop())
    return drawn


def _held_out(config: RunConfig) -> list[PreferencePair]:
    """What the original run has kept from training, its evaluation's file too."""
    pairs = _read(original_run(config) / "data", "heldout")
    if config.data.heldout_path is not None and config.data.format != "helpdesk":
        pairs += load_pairs(config.data.format, config.data.heldout_path).pairs
    return pairs


def _read(directory: Path, part: str) -> list[PreferencePair]:
    path = directory / f"{part}.jsonl"
    if not path.exists():
        raise DataError("missing; a finished run has it", path=path, advice="Train the run first")
    return load_pairs("chat_pairs", path).pairs


def _is_help_desk(pair: PreferencePair) -> bool:
    try:
        parse_question(pair.prompt[-1]["content"])
    except ValueError:
        return False
    return True
