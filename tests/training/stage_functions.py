"""What the runtime's tests run in worker processes; "module:name" is how a stage is named."""

import os
import signal
import time
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
