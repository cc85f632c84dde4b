"""Runs one stage in worker processes: one for each accelerator, or one for each core of a CPU.

In the pipeline every stage goes through `run_stage`. The workers are forked from a server that has imported
the heavy libraries once; each has one thread, and torch.distributed joins them, so two cores do twice the
work. What the libraries print goes to the stage's log file; progress comes back through a pipe.

A command that torchrun or `accelerate launch` started is one of several already: then the stage runs in these
processes (launched.py).
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.errors import TrainingError
from training.machine import free_port, place

# Large tensors are given back to the operating system at every step otherwise, and paid for in page faults.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class Progress:
    """How far a stage is: optimizer steps or examples, and the latest figures worth showing."""

    done: int
    total: int
    figures: str = ""


@dataclass(frozen=True)
class Worker:
    """What a stage function gets: its configuration, its place among the workers, a way to report."""

    config: RunConfig
    stage: str
    rank: int
    size: int
    _send: Callable[[Progress], None] | None
    part: str = ""

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def directory(self) -> Path:
        """Where the stage, or the part of it that is done now, keeps what it needs to resume."""
        return self.config.output / "stages" / self.stage / self.part

    def report(self, progress: Progress) -> None:
        if self._send is not None:
            self._send(progress)


def run_stage(config: RunConfig, stage: str, function: str, on_progress: Callable[[Progress], None]) -> Any:
    """Run `function` ("package.module:name", called with a `Worker`) in every worker; return rank 0's result.

    Raises:
        TrainingError: what a worker raised as one, or that a worker died, with the place of its log.
    """
    if place() is not None:
        from training.launched import lead

        return lead(config, stage, function, on_progress)
    log = stage_log(config, stage)
    context = multiprocessing.get_context("forkserver")
    start_server(config)
    with _environment(_WORKER_ENVIRONMENT):
        size, port = config.process_count, free_port()
        pipes: dict[Connection, BaseProcess] = {}
        for rank in range(size):
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_work,
                args=(config, stage, function, rank, size, port, log, sender),
                name=f"{stage}-{rank}",
            )
            process.start()
            sender.close()
            pipes[receiver] = process
    try:
        return _listen(pipes, log, on_progress)
    finally:
        for process in pipes.values():
            if process.is_alive():
                process.terminate()
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def stage_log(config: RunConfig, stage: str) -> Path:
    """The file for whatever the libraries print during a stage."""
    log = config.output / "logs" / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def start_server(config: RunConfig) -> None:
    """Let the fork server import the heavy libraries while the caller goes on with something else."""
    if place() is not None:
        return  # launched processes run the stages themselves
    by_vllm = any(rl and rl.rollouts != "transformers" for rl in (config.rl_policy, config.rl_improver))
    with _environment(_WORKER_ENVIRONMENT | {"PIT_TRAIN_WITH_VLLM": "1" if by_vllm else "0"}):
        multiprocessing.get_context("forkserver").set_forkserver_preload(["training.preload"])
        forkserver.ensure_running()


def _listen(pipes: dict[Connection, BaseProcess], log: Path, on_progress: Callable[[Progress], None]) -> Any:
    result: Any = None
    open_pipes = list(pipes)
    rank_0 = open_pipes[0]
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError:
                open_pipes.remove(pipe)
                pipes[pipe].join(timeout=30)
                if pipes[pipe].exitcode != 0:
                    raise TrainingError(
                        f"worker {pipes[pipe].name} ended with exit code {pipes[pipe].exitcode}; "
                        f"its log: {log}. "
                        "Run the same command again to resume from the last save."
                    ) from None
                continue
            if isinstance(message, Progress):
                on_progress(message)
            elif isinstance(message, TrainingError):
                raise message
            elif pipe is rank_0:
                result = message
    return result


def _work(
    config: RunConfig, stage: str, function: str, rank: int, size: int, port: int, log: Path, pipe: Connection
) -> None:
    """A worker's whole life; runs in the child."""
    os.environ.update(_WORKER_ENVIRONMENT)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module, name = function.split(":")
    try:
        if size > 1:
            _join_workers()
        run = getattr(importlib.import_module(module), name)
        result = run(Worker(config, stage, rank, size, pipe.send if rank == 0 else None))
        pipe.send(result)
    except TrainingError as error:
        pipe.send(error)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    pipe.close()
    sys.stdout.flush()
    # Interpreter shutdown would wait for threads of torch.distributed that nobody needs any more.
    os._exit(0)


def _join_workers() -> None:
    """Join torch.distributed now: a stage may exchange results before it builds a trainer."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def _end_with_parent() -> None:
    """Outliving a killed command, a worker would write where the command's next run is already at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the fork server, which reads them once when it starts."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
