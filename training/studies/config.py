"""A study's YAML: what is measured, on which run, with which seeds, with how many examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training.config import RunConfig, checked, load_config, read_settings

Kind = Literal[
    "main", "temperature", "elo", "curriculum", "gap_loss", "pair_types", "own_samples", "cost",
    "overoptimisation", "edits", "preferences",
]  # fmt: skip
Family = Literal["original", "pit", "self_refine", "best_of_n"]
Rubric = Literal["all", "polite", "complete"]


class StudyConfig(BaseModel):
    """One study. Those of one run share their answers: what one has asked costs the next nothing.

    `run` is the configuration of the training run, `overrides` change it. `seeds` are those of training; a
    run of another seed than the configuration's own gets its seed behind its output's name. `variants` name
    trainings that differ from the run, each by a list of overrides; only the stages that differ are trained.
    `temperatures` are a system family's own (drafts included), for `main`; what is not named samples as the
    checkpoints recommend. `grid` are the temperatures of the sweep. `rubrics` are Self-Refine's, for `main`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    run: Path
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(min_length=1)
    output: Path = Path("runs/studies")
    examples: int = Field(default=1_000, ge=4)
    example_seed: int = Field(default=1, ge=0)
    iterations: int = Field(default=5, ge=1, le=20)
    concurrency: int = Field(default=32, ge=1)
    deadline_s: float = Field(default=300.0, gt=0)
    temperatures: dict[Family, float] = {}
    grid: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    rubrics: tuple[Rubric, ...] = Field(default=("all", "polite", "complete"), min_length=1)
    variants: dict[str, tuple[str, ...]] = {}

    def run_config(self, seed: int) -> RunConfig:
        """The training run with this seed.

        Raises:
            ConfigError: its configuration is wrong.
        """
        config = load_config(self.run, self.overrides)
        if seed == config.seed:
            return config
        output = config.output.with_name(f"{config.output.name}-seed{seed}")
        return load_config(self.run, [*self.overrides, f"seed={seed}", f"output={output}"])

    @property
    def result(self) -> Path:
        """Where the result is published."""
        return self.output / f"{self.name}.json"


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML and apply overrides of the form `a.b=value`.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it.
    """
    record = read_settings(path, "a study's YAML file", "training/configs/studies/main.yaml")
    record.setdefault("name", path.stem)
    return checked(StudyConfig, record, overrides, path, "study")
