"""What a study gets for one seed: its settings, its trained run, trained variants, a desk that asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from training.config import RunConfig
from training.judging import Confirm
from training.studies.asking import Desk
from training.studies.config import StudyConfig
from training.studies.variants import train_variant


@dataclass(frozen=True)
class Context:
    """One study and one seed; `confirm` is asked before a judge that costs begins."""

    study: StudyConfig
    run: RunConfig
    console: Console
    confirm: Confirm = lambda question: False

    @property
    def directory(self) -> Path:
        """The study's own, for what is kept beside its result."""
        return self.study.output / self.study.name

    def desk(self, models: dict[str, dict[str, Path]] | None = None) -> Desk:
        """Asks systems of the run's models, and of others by name."""
        return Desk(self.study, self.run, self.console, dict(models or {}))

    def variant(self, name: str) -> RunConfig:
        """The run with the study's overrides of this name, trained (only the stages that differ)."""
        return train_variant(self.study, self.run, name, self.console)
