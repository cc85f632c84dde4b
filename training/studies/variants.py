"""Trainings that differ from a run in a setting or two: the stages that do not differ are shared with it."""

from __future__ import annotations

import shutil

from rich.console import Console

from training.checkpoint import read_manifest, share_checkpoint
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.pipeline import finished, run, stages
from training.studies.config import StudyConfig


def train_run(config: RunConfig, console: Console) -> RunConfig:
    """Train what is missing of a run; nothing where it is finished."""
    if not finished(config):
        run(config, console)
    return config


def variant_config(study: StudyConfig, base: RunConfig, name: str) -> RunConfig:
    """The configuration of a variant; it lives under the run, in RUN/variants/NAME.

    Raises:
        ConfigError: the study has no such variant, or its overrides are wrong.
    """
    if name not in study.variants:
        raise ConfigError(f"{study.name}: variants.{name} is needed; see training/configs/studies")
    output = base.output / "variants" / name
    overrides = [*study.overrides, f"seed={base.seed}", *study.variants[name], f"output={output}"]
    return load_config(study.run, overrides)


def train_variant(study: StudyConfig, base: RunConfig, name: str, console: Console) -> RunConfig:
    """Train a variant of a finished run; one that an earlier study left with other settings is replaced."""
    config = variant_config(study, base, name)
    if finished(config, retrain=True):
        return config
    if config.digest("base") == base.digest("base") and not (config.output / "data").exists():
        shutil.copytree(base.output / "data", config.output / "data")
    for stage in stages(config):
        mine, its, digest = config.output / stage.name, base.output / stage.name, config.digest(stage.name)
        if mine.is_dir() and read_manifest(mine)["config_hash"] != digest:
            shutil.rmtree(mine)
            (config.output / "metrics.jsonl").unlink(missing_ok=True)  # of steps that are no more
        if not mine.exists() and its.is_dir() and read_manifest(its)["config_hash"] == digest:
            share_checkpoint(its, mine)
    console.print(f"[bold]{name}[/bold]: {', '.join(study.variants[name])}", highlight=False)
    return train_run(config, console)
