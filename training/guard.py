"""Keeps RL within bounds: a KL that follows a target, and a stop that keeps the best weights.

A reward model is right only near what it was trained on; RL that goes on for long enough always leaves that
region. Beyond the paper. What happened in earlier steps is read from the trainer's own log, so a run that was
killed goes on with the same β and the same best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.config import GuardConfig
from training.errors import Diverged
from training.models import Trained
from training.prefix_tree import trainable_state
from training.runtime import Worker
from training.trainers import append_metrics, trained

# K_β and the clip of Ziegler et al. 2019.
GAIN, CLIP = 0.1, 0.2


def adapted_beta(beta: float, kls: Sequence[float], target: float) -> float:
    """β after steps with these KLs: β ← β·(1 + 0.1·clip(KL/target − 1, −0.2, 0.2)) after each."""
    for kl in kls:
        beta *= 1 + GAIN * min(max(kl / target - 1, -CLIP), CLIP)
    return beta


class KlTarget(TrainerCallback):  # type: ignore[misc]
    """Sets the trainer's β after every step; `trainer` is given once it exists."""

    trainer: Any

    def __init__(self, worker: Worker, beta: float, target: float) -> None:
        self.worker, self.beta, self.target = worker, beta, target

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        kls = [record["kl"] for record in state.log_history if "kl" in record]
        self.trainer.beta = adapted_beta(self.beta, kls, self.target)
        if self.worker.main:
            append_metrics(self.worker, {"step": state.global_step + 1, "beta": self.trainer.beta})


def verdict(history: Sequence[dict[str, float]], guard: GuardConfig) -> tuple[int | None, str | None]:
    """What the figures of all steps so far mean: the best step (counted from 1), and why to stop here.

    `history` has one record a step, with `judge` and the figures of monitors.py. Only full windows within the
    bounds can be best.
    """
    best, best_step, windows_since = float("-inf"), None, 0
    for end in range(guard.window, len(history) + 1):
        window = history[end - guard.window : end]
        crossed = _crossed(window, history[: guard.window], guard)
        if crossed:
            return best_step, f"{crossed} (mean of steps {end - guard.window + 1} to {end})"
        mean = fmean(record["judge"] for record in window)
        if mean > best:
            best, best_step, windows_since = mean, end, 0
        else:
            windows_since += 1
        if windows_since >= guard.patience:
            return best_step, f"{guard.judge} has not risen above {best:.3f} since step {best_step}"
    return best_step, None


def _crossed(
    window: Sequence[dict[str, float]], first: Sequence[dict[str, float]], guard: GuardConfig
) -> str | None:
    for name in ("kl", "copied", "truncated"):
        bound = getattr(guard, name)
        if bound is not None and (mean := fmean(r[name] for r in window)) > bound:
            return f"{name} {mean:.3f} is above {bound:g}"
    if guard.edit is not None and (mean := fmean(r["edit"] for r in window)) < guard.edit:
        return f"edit {mean:.3f} is below {guard.edit:g}"
    if guard.words is not None:
        mean, start = fmean(r["words"] for r in window), fmean(r["words"] for r in first)
        if mean > guard.words * start:
            return f"words {mean:.1f} is above {guard.words:g} times the {start:.1f} of the start"
    return None


class Guard(TrainerCallback):  # type: ignore[misc]
    """Applies `verdict` after every step; the best weights wait in the stage's directory."""

    trainer: Any

    def __init__(self, worker: Worker, guard: GuardConfig) -> None:
        self.worker, self.guard = worker, guard
        self.best_step: int | None = None
        self.reason: str | None = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Figures are means over all processes, so every process comes to the same verdict.
        names = ("kl", "copied", "truncated", "edit", "words")
        history = [
            {"judge": record[self.guard.judge], **{name: record[name] for name in names if name in record}}
            for record in state.log_history
            if self.guard.judge in record
        ]
        self.best_step, self.reason = verdict(history, self.guard)
        if self.reason is not None:
            control.should_training_stop = True
        elif self.best_step == len(history):
            best = trained(self.trainer)
            if self.worker.main:
                kept = trainable_state(best.model, best.state)
                # Tied weights are one tensor under two names.
                save_file({name: value.clone() for name, value in kept.items()}, self._path(self.best_step))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A run that is killed resumes from here or later: older bests are no longer needed."""
        if self.worker.main:
            for path in self.worker.directory.glob("best-*.safetensors"):
                if path != self._path(self.best_step):
                    path.unlink()

    def finish(self, last: Trained) -> tuple[Trained, dict[str, float]]:
        """The model with its best weights in place of the last, and figures for the manifest.

        Raises:
            Diverged: a bound was crossed before there was a best.
        """
        if self.worker.main and self.reason is not None:
            append_metrics(self.worker, {"stopped": self.reason, "best_step": self.best_step})
        if self.best_step is None:
            if self.reason is not None:
                raise Diverged(
                    f"{self.worker.stage}: {self.reason}, before any window kept within its bounds: there "
                    "is nothing to publish. Lower its learning rate or raise beta, or widen the bounds"
                )
            return last, {}
        best = load_file(self._path(self.best_step)) if self.worker.main else {}
        return Trained(last.model, {**last.state, **best}), {"best_step": float(self.best_step)}

    def _path(self, step: int | None) -> Path:
        return self.worker.directory / f"best-{step}.safetensors"
