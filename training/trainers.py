"""What all stages share: the trainer's arguments, progress and metrics, and resuming.

Traps of the libraries that are handled here: on a CPU bf16 and gradient checkpointing must be off by name;
columns that only our own loss reads must not be dropped; a checkpoint that a kill cut short must not be
resumed from.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.config import OptimizerConfig
from training.errors import Diverged, TrainingError
from training.runtime import Progress, Worker

# The share of the steps over which the `wsd` schedule falls to zero.
DECAY = 0.4


def common_arguments(
    worker: Worker, optimizer: OptimizerConfig | None = None, examples: int = 0
) -> dict[str, Any]:
    """Keyword arguments for any `TrainingArguments` subclass; `examples` is the size of the data set.

    Raises:
        TrainingError: the batch does not divide between the processes.
    """
    on_cpu = not torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "output_dir": str(worker.directory),
        "seed": worker.config.seed,
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 1 / worker.config.saves,
        "save_total_limit": 1,
        "ddp_find_unused_parameters": False,
    }
    if on_cpu and worker.size > 1:
        arguments["ddp_backend"] = "gloo"
    if optimizer is not None:
        if optimizer.batch % worker.size:
            raise TrainingError(
                f"{worker.stage}: batch {optimizer.batch} does not divide between {worker.size} processes; "
                f"choose a multiple of {worker.size} or set processes=1"
            )
        arguments |= {
            "per_device_train_batch_size": optimizer.batch // worker.size,
            "num_train_epochs": optimizer.epochs or 1,
            "max_steps": optimizer.steps or -1,
            "learning_rate": optimizer.learning_rate,
            "lr_scheduler_type": optimizer.schedule,
            "warmup_steps": optimizer.warmup,
            "weight_decay": optimizer.weight_decay,
        }
        if optimizer.schedule == "wsd":
            steps = optimizer.steps or int((optimizer.epochs or 1) * examples / optimizer.batch)
            arguments["lr_scheduler_type"] = "warmup_stable_decay"
            arguments["lr_scheduler_kwargs"] = {"num_decay_steps": max(1, int(DECAY * steps))}
    return arguments


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Sends progress to the terminal and figures to metrics.jsonl; stops a run whose loss is not a number."""

    def __init__(self, worker: Worker, shown: tuple[str, ...] = ("loss",)) -> None:
        self.worker, self.shown = worker, shown
        self.figures = ""
        self.started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.worker.report(Progress(state.global_step, state.max_steps, self.figures))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise Diverged(
                f"{self.worker.stage}: the loss is {loss} at step {state.global_step}; "
                "lower the learning rate"
            )
        self.figures = (
            "  ".join(f"{k.split('/')[-1]} {logs[k]:.3f}" for k in self.shown if k in logs) or self.figures
        )
        if self.worker.main:
            append_metrics(
                self.worker,
                {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 1), **logs},
            )


def append_metrics(worker: Worker, record: dict[str, Any]) -> None:
    """One line of runs/NAME/metrics.jsonl: the stage and the given figures; null for one that is not a
    number."""
    line = {"stage": worker.stage, "time": round(time.time(), 1), **record}
    line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with (worker.config.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def last_checkpoint(directory: Path) -> str | None:
    """The newest trainer checkpoint that was written to its end; a cut-off one is skipped."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(found):
        try:
            # The trainer writes this file last.
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def train(trainer: Any, worker: Worker) -> None:
    """Train, from the last save when there is one."""
    # The default callback prints every log line to a file nobody reads; Reporter has them.
    trainer.train(resume_from_checkpoint=last_checkpoint(worker.directory))
    trainer.accelerator.wait_for_everyone()
