"""The first stage: read or write the preference pairs, and split them between the stages, by prompt.

`data/sft.jsonl`, `reward.jsonl` and `rl.jsonl` are the paper's three parts; `heldout.jsonl` is seen by none
of them (calibration, and evaluation unless `data.heldout_path` names a file for that).
"""

from __future__ import annotations

import json

from training.config import RunConfig
from training.data import LoadReport, PreferencePair, load_pairs, split_by_prompt, write_pairs
from training.errors import DataError
from training.feedback import prepare_feedback
from training.synthetic import make_pairs

PARTS = ("sft", "reward", "rl")


def prepare_data(config: RunConfig) -> str:
    """Write the four files and `report.json`; return what a person should know about the data."""
    if config.generation is not None:
        return prepare_feedback(config)
    directory = config.output / "data"
    directory.mkdir(parents=True, exist_ok=True)
    parts, reports = read_data(config)
    for name, pairs in parts.items():
        write_pairs(directory / f"{name}.jsonl", pairs)
    record = {
        "files": [report.as_dict() for report in reports],
        "pairs": {name: len(pairs) for name, pairs in parts.items()},
    }
    (directory / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    # Written last: its presence says that the data is whole.
    (directory / "settings.json").write_text(config.digest("base"), encoding="utf-8")
    return data_summary(parts, reports)


def read_data(config: RunConfig) -> tuple[dict[str, list[PreferencePair]], list[LoadReport]]:
    """The pairs of each part (sft, reward, rl, heldout), and what was left out of each file."""
    training, heldout, reports = _read(config)
    parts = split_by_prompt(training, config.data.split, config.seed, config.data.split_key)
    return dict(zip((*PARTS, "heldout"), (*parts, heldout), strict=True)), reports


def data_summary(parts: dict[str, list[PreferencePair]], reports: list[LoadReport]) -> str:
    """What a person should know about the data."""
    counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in parts.items())
    return "\n".join([*(report.text() for report in reports), f"pairs: {counts}"])


def read_part(config: RunConfig, part: str) -> list[PreferencePair]:
    """A part of the prepared data: sft, reward, rl or heldout."""
    return load_pairs("chat_pairs", config.output / "data" / f"{part}.jsonl").pairs


def _read(config: RunConfig) -> tuple[list[PreferencePair], list[PreferencePair], list[LoadReport]]:
    data = config.data
    if data.format == "helpdesk":
        # Prompts may coincide by chance; a held-out prompt must not have been seen.
        training = make_pairs(data.pairs, config.seed, data.noise)
        seen = {pair.prompt[0]["content"] for pair in training}
        candidates = make_pairs(data.heldout + 200, config.seed + 1_000_003, data.noise)
        heldout = [pair for pair in candidates if pair.prompt[0]["content"] not in seen]
        return training, heldout[: data.heldout], []
    assert data.path is not None
    loaded = load_pairs(data.format, data.path, data.limit)
    share = data.heldout / len(loaded.pairs)
    if share > 0.5:
        raise DataError(
            f"data.heldout is {data.heldout}, more than half of the {len(loaded.pairs)} usable pairs",
            path=data.path, advice="Lower data.heldout",
        )  # fmt: skip
    training, heldout = split_by_prompt(loaded.pairs, (1 - share, share), config.seed + 1, data.split_key)
    return training, heldout, [loaded.report]
