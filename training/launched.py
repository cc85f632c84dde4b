"""The same command in every process that torchrun or `accelerate launch` has started.

Rank 0 runs the pipeline as it always runs: it alone checks, prints, holds the lock, writes data and
publishes. The others wait for the stages that it comes to and run each of them with it, all in these
processes. What they tell each other goes through the launcher's key-value store, and every wait has a
deadline; what stages exchange goes through torch.distributed, with a deadline too.

The output directory must be on a file system that all machines see.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from rich.console import Console

from training.errors import TrainingError
from training.machine import Place, end_with_parent, place
from training.runtime import _WORKER_ENVIRONMENT, Progress, Worker, stage_log

if TYPE_CHECKING:
    from training.config import RunConfig

# Seconds. Until the first process comes to its next stage: it may be preparing data, or publishing.
NEXT_STAGE_S = 2 * 3600.0
# Until the others have ended a stage that the first has ended; it publishes meanwhile, so they come first.
STAGE_END_S = 1800.0
# A collective operation of torch.distributed: others may be writing a checkpoint.
COLLECTIVE_S = 1800.0
# A process that failed alone lets the first tell of it, unless that one waits for it in a collective.
GRACE_S = 30.0


@dataclass(frozen=True)
class _Stage:
    config: RunConfig
    name: str
    function: str


@dataclass(frozen=True)
class _End:
    status: int


class _Group:
    """This process's side of the conversation; one a process."""

    def __init__(self, at: Place, store: Any, terminal: TextIO) -> None:
        self.at, self.terminal = at, terminal
        self._store = store
        self._said = 0

    def say(self, what: _Stage | _End) -> int:
        """Tell the others what comes next; returns its number."""
        self._said += 1
        self._store.set(f"next/{self._said}", pickle.dumps(what))
        return self._said

    def hear(self) -> tuple[int, _Stage | _End]:
        """What rank 0 says next. Raises `TrainingError` when nothing comes in time or the store is gone."""
        self._said += 1
        return self._said, self._get(f"next/{self._said}", NEXT_STAGE_S, "process 0 has not gone on")

    def ended(self, number: int, error: TrainingError | None) -> None:
        self._store.set(f"ended/{number}/{self.at.rank}", pickle.dumps(error))

    def wait_for_others(self, number: int, name: str) -> None:
        """Raises what another process has raised, or that one did not come to an end."""
        end = time.monotonic() + STAGE_END_S
        for rank in range(1, self.at.size):
            what = f"process {rank} has not ended {name}"
            error = self._get(f"ended/{number}/{rank}", max(end - time.monotonic(), 0.1), what)
            if error is not None:
                raise error

    def next_comes_within(self, seconds: float) -> bool:
        key = f"next/{self._said + 1}"
        try:
            self._store.wait([key], timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return True

    def _get(self, key: str, seconds: float, what: str) -> Any:
        try:
            self._store.wait([key], timedelta(seconds=seconds))
            # Only processes of the same launch write here, as in torch's own exchange of objects.
            return pickle.loads(self._store.get(key))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"{what} within {seconds:.0f} s, or the launcher has ended ({reason}); "
                "run the same command again to resume from the last save"
            ) from error


_group: _Group | None = None


def take_part(work: Callable[[Console], None]) -> NoReturn:
    """The whole life of a launched process: rank 0 does `work`, the others follow; all end with its status.

    `work` calls `run_stage`. It gets a console on the terminal, where it shows its progress while the
    libraries print into the stage's log. An error is printed once.
    """
    group = _join()
    if group.at.rank > 0:
        _follow(group)
    status = 1
    try:
        work(Console(file=group.terminal))
        status = 0
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
    with suppress(RuntimeError):
        group.say(_End(status))
    _leave(status)


def lead(config: RunConfig, stage: str, function: str, on_progress: Callable[[Progress], None]) -> Any:
    """Rank 0's `run_stage`: run a stage here and in every other process; return the result of this one.

    Raises:
        TrainingError: what a process raised as one, or that a process failed, with the place of its log.
    """
    group = _group
    assert group is not None, "take_part comes first"
    number = group.say(_Stage(config, stage, function))
    result = _run(config, stage, function, group.at, on_progress)
    group.wait_for_others(number, stage)
    return result


def _follow(group: _Group) -> NoReturn:
    try:
        while True:
            number, what = group.hear()
            if isinstance(what, _End):
                _leave(what.status)
            error: TrainingError | None = None
            try:
                _run(what.config, what.name, what.function, group.at, None)
            except TrainingError as raised:
                error = raised
            group.ended(number, error)
            if error is not None and not group.next_comes_within(GRACE_S):
                raise error
    except TrainingError as error:
        print(f"error: process {group.at.rank}: {error}", file=sys.stderr)
        _leave(2)


def _join() -> _Group:
    global _group
    at = place()
    assert at is not None
    for name, value in _WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    end_with_parent()  # a launcher that is killed leaves its processes behind
    import torch
    from accelerate import PartialState
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    import training.preload  # noqa: F401 - for what it sets up

    limit = timedelta(seconds=COLLECTIVE_S)
    store, _, _ = next(rendezvous("env://", timeout=limit))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    PartialState(cpu=not torch.cuda.is_available(), timeout=limit)
    terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    _group = _Group(at, PrefixStore(f"pit-train/{attempt}", store), terminal)
    return _group


def _leave(status: int) -> NoReturn:
    """End this process without waiting for threads of torch.distributed that nobody needs any more."""
    import torch.distributed

    if status == 0 and torch.distributed.is_initialized():
        # All others do the same now. After a failure some may be in a collective for good.
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if _group is not None:
        _group.terminal.flush()
    os._exit(status)


def _run(
    config: RunConfig, stage: str, function: str, at: Place, on_progress: Callable[[Progress], None] | None
) -> Any:
    module, name = function.split(":")
    log = stage_log(config, stage)
    try:
        with _printing_to(log):
            try:
                run = getattr(importlib.import_module(module), name)
                return run(Worker(config, stage, at.rank, at.size, on_progress))
            except TrainingError:
                raise
            except Exception as error:
                traceback.print_exc()
                raise TrainingError(
                    f"process {at.rank} failed in {stage} ({type(error).__name__}); its log: {log}. "
                    "Run the same command again to resume from the last save."
                ) from error
    finally:
        _forget_stage()


def _forget_stage() -> None:
    """What a worker of its own would take with it when it ends: its memory, and DeepSpeed's way to load."""
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Standard output and error go to a stage's log, also what libraries write past Python."""
    before = [(number, os.dup(number)) for number in (1, 2)]
    with log.open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, _ in before:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in before:
            os.dup2(saved, number)
            os.close(saved)
