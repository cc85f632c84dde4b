"""What training raises when the input, not the program, is at fault.

TrainingError
├── ConfigError      a value of the configuration; names the key
├── DataError        a data file; names the file, the line and what to do
├── CheckpointError  a checkpoint directory that is missing, incomplete or of another format
├── UnfitReward      a gap reward that RL must not follow; names each figure out of bounds
└── Diverged         a run that left the range in which its result means anything

A message says what is wrong, with which value, and what to do about it.
"""

from pathlib import Path


class TrainingError(Exception):
    """Base of every error that `pit-train` prints without a traceback."""


class ConfigError(TrainingError):
    """A configuration value is unknown, missing or impossible."""


class DataError(TrainingError):
    """A data file cannot be read as what it is said to be.

    `path` and `line` (counted from 1; None when the whole file is meant) are kept for callers; the message
    names them too.
    """

    def __init__(
        self, problem: str, *, path: Path | None = None, line: int | None = None, advice: str = ""
    ) -> None:
        place = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(f"{place}{problem}" + (f". {advice}" if advice else ""))
        self.path = path
        self.line = line


class CheckpointError(TrainingError):
    """A checkpoint is missing, incomplete, or does not match its manifest."""


class UnfitReward(TrainingError):
    """A gap reward failed the check before RL."""


class Diverged(TrainingError):
    """Loss, KL or reward left the range in which the result means anything."""
