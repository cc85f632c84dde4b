"""`pit-train` with FSDP2 between CPU processes: torch can do it (gloo), accelerate only thinks of GPUs.

It is told that these processes are of the kind that it shards; everything else is the real thing.
"""

import os

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from training.cli import main

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def gloo(*_: object, **__: object) -> tuple[str, DistributedType]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return "gloo", DistributedType.MULTI_GPU


PartialState._prepare_backend = gloo

if __name__ == "__main__":
    main()
