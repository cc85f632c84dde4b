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
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from training.config import OptimizerConfig, micro_batches
from training.errors import Diverged
from training.models import Trained
from training.optim import make_optimizer
from training.runtime import Progress, Worker
from training.trackers import start_trackers

# The share of the steps over which the `wsd` schedule falls to zero.
DECAY = 0.4


def common_arguments(
    worker: Worker, optimizer: OptimizerConfig | None = None, examples: int = 0
) -> dict[str, Any]:
    """Keyword arguments for any `TrainingArguments` subclass; `examples` is the size of the data set.

    Raises:
        ConfigError: the batch does not divide between the processes.
    """
    on_cpu, model = not torch.cuda.is_available(), worker.config.model
    arguments: dict[str, Any] = {
        "output_dir": str(worker.directory),
        "seed": worker.config.seed,
        "use_cpu": on_cpu,
        "bf16": model.dtype == "bfloat16" or (model.dtype == "auto" and not on_cpu),
        "gradient_checkpointing": model.gradient_checkpointing,
        "remove_unused_columns": False,
        "report_to": start_trackers(worker),
        "disable_tqdm": True,
        "logging_steps": 10,
        "logging_first_step": True,
        # On by default, it replaces a loss that is not a number by the mean of the others.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": 1 / worker.config.saves,
        "save_total_limit": 1,
        "ddp_find_unused_parameters": False,
    }
    if model.gradient_checkpointing:
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if on_cpu and worker.size > 1:
        arguments["ddp_backend"] = "gloo"
    if optimizer is not None:
        arguments |= batch_arguments(worker, optimizer.batch, optimizer.micro_batch)
        arguments |= {
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


def batch_arguments(worker: Worker, batch: int, micro_batch: int | None) -> dict[str, int]:
    """How a batch over all processes becomes micro-batches of each. Raises `ConfigError`."""
    size, count = micro_batches(batch, worker.size, micro_batch)
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Sends progress to the terminal and figures to metrics.jsonl; stops a run that diverges.

    `explodes`: the loss starts near its greatest value and a rise above twice that means that nothing is
    learned any more. Not so in RL, whose loss is near 0 throughout.
    """

    def __init__(self, worker: Worker, shown: tuple[str, ...] = ("loss",), *, explodes: bool = True) -> None:
        self.worker, self.shown, self.explodes = worker, shown, explodes
        self.figures = ""
        self.started = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        # Before a save: one weight that is not a number makes every later step worthless.
        sums = [_local(p).sum() for p in model.parameters() if p.requires_grad]
        if not torch.stack(sums).isfinite().all():
            raise self._diverged(f"a weight is no longer a number after step {state.global_step}")
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
        self.figures = (
            "  ".join(f"{k.split('/')[-1]} {logs[k]:.3f}" for k in self.shown if k in logs) or self.figures
        )
        if self.worker.main:
            append_metrics(
                self.worker,
                {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 1), **logs},
            )
        loss = logs.get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} at step {state.global_step}")
        first = next((record["loss"] for record in state.log_history if "loss" in record), loss)
        if self.explodes and loss > max(2 * first, first + 1):
            raise self._diverged(f"the loss rose from {first:.3f} to {loss:.3f} at step {state.global_step}")

    def _diverged(self, what: str) -> Diverged:
        save = last_checkpoint(self.worker.directory)
        kept = f"the last good save is {save}" if save else "nothing was saved before"
        return Diverged(
            f"{self.worker.stage}: {what}; {kept}. Lower the learning rate of this stage, raise its batch or "
            "warm-up, or look for broken pairs (pit-train data inspect); the same command then trains it anew"
        )


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter that is divided between several, by FSDP2 or by ZeRO-3."""
    value: Any = getattr(parameter, "ds_tensor", parameter).detach()
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


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


def train(trainer: Any, worker: Worker, optimizer: OptimizerConfig | None = None) -> None:
    """Train, from the last save when there is one; without `optimizer`, with the trainer's own."""
    if optimizer is not None:
        # Not by the constructor, which refuses one beside FSDP.
        trainer.optimizer = make_optimizer(trainer.model, optimizer)
    # The default callback prints every log line to a file nobody reads; Reporter has them.
    trainer.train(resume_from_checkpoint=last_checkpoint(worker.directory))
    trainer.accelerator.wait_for_everyone()
    # DeepSpeed would divide up every model loaded from now on, also those that one worker alone loads.
    unset_hf_deepspeed_config()


def trained(trainer: Any) -> Trained:
    """What the trainer has trained, whole; for every worker to call, each may hold a part (FSDP, ZeRO-3)."""
    accelerator = trainer.accelerator
    state = accelerator.get_state_dict(trainer.model_wrapped)
    return Trained(accelerator.unwrap_model(trainer.model), state)
