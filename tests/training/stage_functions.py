"""What the runtime's tests run in worker processes; "module:name" is how a stage is named."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from training.errors import DataError
from training.runtime import Progress, Worker


def works(worker: Worker) -> dict[str, Any]:
    for step in range(1, 4):
        worker.report(Progress(step, 3, f"step {step}"))
    return {"rank": worker.rank, "size": worker.size, "threads": os.environ["OMP_NUM_THREADS"]}


def fails(worker: Worker) -> None:
    raise DataError("the data is bad", line=3, advice="Mend it")


def has_a_bug(worker: Worker) -> None:
    raise KeyError("no such thing")


def is_killed(worker: Worker) -> None:
    """Rank 1 is killed while rank 0 waits for it, as in a collective operation."""
    if worker.rank == worker.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def hangs(worker: Worker) -> None:
    (worker.config.output / f"pid-{worker.rank}").write_text(str(os.getpid()))
    time.sleep(600)


def fails_beside_a_collective(worker: Worker) -> None:
    """Rank 1 alone has the error, and rank 0 waits for it."""
    import torch.distributed

    if worker.rank == 1:
        fails(worker)
    torch.distributed.barrier()


def _launched(output: str, function: str) -> None:
    """`python -m tests.training.stage_functions OUTPUT FUNCTION`, started by torchrun."""
    from tests.training.helpers import tiny_config
    from training import launched
    from training.runtime import run_stage

    launched.GRACE_S = 1.0
    config = tiny_config(Path(output), "processes=auto")
    name = f"tests.training.stage_functions:{function}"
    launched.take_part(lambda _: run_stage(config, "stage", name, lambda _: None))


if __name__ == "__main__":
    _launched(*sys.argv[1:])
