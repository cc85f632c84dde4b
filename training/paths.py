"""Where stages find each other's results."""

from __future__ import annotations

import json
from typing import Any

from training.config import RunConfig


def base_source(config: RunConfig) -> str:
    """The directory or hub name of the base model."""
    return config.base.path or str(config.output / "base")


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
