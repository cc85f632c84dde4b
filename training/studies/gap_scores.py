"""Scores of a trained gap reward on rows of text, in this process: what no route of the server gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.checkpoint import read_manifest

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.data import Message

Row = tuple[Sequence["Message"], str, str]
"""Prompt, candidate, baseline."""


@dataclass(frozen=True)
class GapReward:
    """The gap reward of a run, all members of its ensemble."""

    models: Sequence[Any]
    tokenizer: Any
    turn: str | None
    gap: dict[str, Any]

    @staticmethod
    def of(config: RunConfig) -> GapReward:
        """Load it. Raises `CheckpointError` where it is missing."""
        from transformers.utils import logging

        from training.models import load_reading_tokenizer, load_reward_model
        from training.paths import gap_reward_names

        logging.disable_progress_bar()  # for loading some megabytes
        directories: list[Path] = [config.output / name for name in gap_reward_names(config)]
        models = [load_reward_model(directory, config.seed) for directory in directories]
        gap = read_manifest(directories[0])["gap"]
        return GapReward(models, load_reading_tokenizer(directories[0]), config.gap_turn, gap)

    def raw(self, rows: Sequence[Row]) -> list[float]:
        """r_gap(x, candidate, baseline) of each row, as it is."""
        from training.gap_reward import gap_scores

        return gap_scores(self.models, self.tokenizer, rows, self.turn)

    def probabilities(self, rows: Sequence[Row]) -> list[float]:
        """The calibrated P(candidate is better than baseline)."""
        from training.calibrate import centred_gaps, sigmoid

        a, b = (float(self.gap["calibration"][key]) for key in ("a", "b"))
        gaps = centred_gaps(self.models, self.tokenizer, rows, self.turn, self.gap["centering"])
        return [sigmoid(a * gap + b) for gap in gaps]
