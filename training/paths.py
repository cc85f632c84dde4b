"""Where stages find each other's results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from training.config import RunConfig

OPENED = "generation.json"
"""What a later generation was opened with (generations.py); its `parent` is relative to generation 0."""


def base_source(config: RunConfig) -> str:
    """The directory or hub name of the base model."""
    return config.base.path or str(config.output / "base")


def improver_source(config: RunConfig) -> str:
    """What the improver's fine-tuning starts from: the base, or the improver of the generation before."""
    generation = config.generation
    return str(generation.parent / "improver") if generation else base_source(config)


def rft_names(config: RunConfig) -> list[str]:
    """The improvers of rejection-sampling fine-tuning's rounds: `improver_rft`, `improver_rft_2` …"""
    rounds = config.rft_improver.rounds if config.rft_improver else 0
    return ["improver_rft" if i == 1 else f"improver_rft_{i}" for i in range(1, rounds + 1)]


def improver_anchor(config: RunConfig) -> Path:
    """The fine-tuned improver that RL or DPO starts from and is held to."""
    return config.output / ["improver_sft", *rft_names(config)][-1]


def gap_reward_source(config: RunConfig, name: str) -> str:
    """What a gap reward starts from: the configured start, or the same one of the generation before."""
    if config.generation is not None:
        return str(config.generation.parent / name)
    return config.gap_reward.path or str(config.output / config.gap_reward.start)


def original_run(config: RunConfig) -> Path:
    """The directory of generation 0 (generations.py lays the others out under it)."""
    return config.output.parents[1] if config.generation else config.output


def ancestors(config: RunConfig) -> list[Path]:
    """The directories of the generations that this one descends from, newest first, without generation 0."""
    root, found = original_run(config), list[Path]()
    at = config.generation.parent if config.generation else root
    while at != root:
        found.append(at)
        parent = json.loads((at / OPENED).read_text(encoding="utf-8"))["parent"]
        at = Path(os.path.normpath(root / parent))
    return found


def lineage(config: RunConfig, stage: str) -> dict[str, Any]:
    """The manifest's `generation`, and `parent`: the hash of the checkpoint of the generation before that
    this stage goes on from (None in the first)."""
    generation = config.generation
    if generation is None:
        return {"generation": 0, "parent": None}
    name = "improver" if stage.startswith("improver") else stage
    return {"generation": generation.number, "parent": generation.checkpoints.get(name)}


def gap_reward_names(config: RunConfig) -> list[str]:
    """`gap_reward`, and `gap_reward_2` … for the other members of an ensemble."""
    return ["gap_reward", *(f"gap_reward_{i}" for i in range(2, config.gap_reward.ensemble + 1))]


def data_record(config: RunConfig) -> dict[str, Any]:
    """The manifest's `data`: name, seed, counts and file hashes."""
    report = json.loads((config.output / "data" / "report.json").read_text(encoding="utf-8"))
    files = [{"name": file["path"].rsplit("/", 1)[-1], "sha256": file["sha256"]} for file in report["files"]]
    return {
        "name": config.name,
        "format": config.data.format,
        "seed": config.seed,
        "pairs": report["pairs"],
        "files": files,
    }
