"""What the command runs on: the accelerators of this machine, and the processes that a launcher has started.

`torchrun` and `accelerate launch` start the same command several times and tell each its place in the
environment (RANK, WORLD_SIZE). Without them the command starts its own workers (runtime.py).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those that were launched, on all machines together."""

    rank: int
    size: int


def place() -> Place | None:
    """Where this process stands when a launcher has started it; None otherwise."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return Place(int(rank), int(size)) if rank and size else None


def accelerators() -> int:
    """GPUs that this process may use; 0 on a machine without. Nothing is initialized on them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def end_with_parent() -> None:
    """From now on this process ends when its parent has: outliving a killed command, it would write where the
    command's next run is already at work."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
