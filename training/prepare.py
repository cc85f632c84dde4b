"""The first stage: read or write the preference pairs, and split them between the stages, by prompt.

`data/sft.jsonl`, `reward.jsonl` and `rl.jsonl` are the paper's three parts; `heldout.jsonl` is seen by none
of them (calibration, and evaluation unless `data.heldout_path` names a file for that).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from training.config import RunConfig
from training.data import LoadReport, PairStream, PreferencePair, load_pairs, pair_writer
from training.errors import DataError
from training.feedback import prepare_feedback
from training.split import Splitter
from training.synthetic import make_pairs

PARTS = ("sft", "reward", "rl")
ALL_PARTS = (*PARTS, "heldout")


@dataclass
class Reading:
    """What is known once the pairs of a run have been read: what was left out of each file, and the size of
    each part. `shared`: how many prompts (with y_l, where `data.split_key` says so) the training file has in
    common with `data.heldout_path`."""

    reports: list[LoadReport] = field(default_factory=list)
    pairs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ALL_PARTS, 0))
    shared: int | None = None

    def text(self) -> str:
        """For a person."""
        lines = [report.text() for report in self.reports]
        if self.shared:
            lines.append(
                f"  {self.shared} prompts of data.path stand in data.heldout_path too: the evaluation will "
                "judge on what was trained on"
            )
        counts = ", ".join(f"{name} {count}" for name, count in self.pairs.items())
        return "\n".join([*lines, f"pairs: {counts}"])


def prepare_data(config: RunConfig) -> str:
    """Write the four files and `report.json`; return what a person should know about the data."""
    if config.generation is not None:
        return prepare_feedback(config)
    directory = config.output / "data"
    directory.mkdir(parents=True, exist_ok=True)
    reading = Reading()
    with ExitStack() as files:
        write = {name: files.enter_context(pair_writer(directory / f"{name}.jsonl")) for name in ALL_PARTS}
        for name, pair in read_data(config, reading):
            write[name](pair)
    record = {
        "files": [report.as_dict() for report in reading.reports],
        "pairs": reading.pairs,
        "shared_with_heldout_path": reading.shared,
    }
    (directory / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    # Written last: its presence says that the data is whole.
    (directory / "settings.json").write_text(config.digest("base"), encoding="utf-8")
    return reading.text()


def read_part(config: RunConfig, part: str) -> list[PreferencePair]:
    """A part of the prepared data: sft, reward, rl or heldout."""
    return load_pairs("chat_pairs", config.output / "data" / f"{part}.jsonl").pairs


def read_data(config: RunConfig, reading: Reading) -> Iterator[tuple[str, PreferencePair]]:
    """Every pair with the part that it belongs to, one by one; `reading` is filled meanwhile.

    A file is read twice, because the share that is held out follows from the number of usable pairs: a pass
    over it costs less than its pairs in memory.
    """
    data = config.data
    if data.format == "helpdesk":
        pairs = _written_pairs(config)
    else:
        assert data.path is not None
        counted = PairStream(data.format, data.path, data.limit)
        for _ in counted:
            pass
        reading.reports.append(counted.report())
        if data.heldout_path is not None:
            others = PairStream(data.format, data.heldout_path)
            for _ in others:
                pass
            reading.reports.append(others.report())
            shared = counted.shared_with(others)
            reading.shared = shared["drafts" if data.split_key == "prompt+rejected" else "prompts"]
        pairs = _file_pairs(config, counted.kept)
    splitter = Splitter(data.split, config.seed, data.split_key)
    for held_out, pair in pairs:
        name = "heldout" if held_out else PARTS[splitter.part(pair)]
        reading.pairs[name] += 1
        yield name, pair
    splitter.check()


def _written_pairs(config: RunConfig) -> Iterator[tuple[bool, PreferencePair]]:
    data, seen = config.data, set()
    for pair in make_pairs(data.pairs, config.seed, data.noise, data.habits):
        seen.add(pair.prompt[0]["content"])
        yield False, pair
    # Prompts may coincide by chance; a held-out prompt must not have been seen.
    candidates = make_pairs(data.heldout + 200, config.seed + 1_000_003, data.noise, data.habits)
    heldout = [pair for pair in candidates if pair.prompt[0]["content"] not in seen]
    yield from ((True, pair) for pair in heldout[: data.heldout])


def _file_pairs(config: RunConfig, count: int) -> Iterator[tuple[bool, PreferencePair]]:
    """Raises `DataError`: more than half would be held out."""
    data = config.data
    assert data.format != "helpdesk" and data.path is not None
    share = data.heldout / count
    if share > 0.5:
        raise DataError(
            f"data.heldout is {data.heldout}, more than half of the {count} usable pairs",
            path=data.path, advice="Lower data.heldout",
        )  # fmt: skip
    splitter = Splitter((1 - share, share), config.seed + 1, data.split_key)
    for pair in PairStream(data.format, data.path, data.limit):
        yield splitter.part(pair) == 1, pair
    splitter.check()
