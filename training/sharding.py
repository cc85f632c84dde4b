"""Checks what a launcher has set up for models that are divided between the processes (FSDP2, ZeRO-3).

`accelerate launch` hands its configuration on in the environment; training/accelerate has some that fit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.config import RunConfig


def check_sharding(config: RunConfig) -> None:
    """Refuse what would train or publish something wrong, before any work.

    Raises:
        ConfigError: FSDP of another version or loading weights in one process alone, ZeRO-3 that does not
            gather weights or has adapters to train, or an optimizer that needs whole matrices.
    """
    fsdp, deepspeed = _on("ACCELERATE_USE_FSDP"), _on("ACCELERATE_USE_DEEPSPEED")
    if not fsdp and not deepspeed:
        return
    if fsdp and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError("accelerate's fsdp_version must be 2; see training/accelerate/fsdp2.yaml")
    if fsdp and _on("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "accelerate's fsdp_cpu_ram_efficient_loading must be false: only one process would load the "
            "weights of models that every process reads, such as the rewards in RL"
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" and not _on(
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"
    ):
        raise ConfigError(
            "accelerate's zero3_save_16bit_model must be true, or there are no whole weights to publish; "
            "see training/accelerate/zero3.yaml"
        )
    if deepspeed and config.model.adapter is not None:
        raise ConfigError(
            "model.adapter does not go with DeepSpeed, whose ZeRO-3 wants all weights in one precision; "
            "use training/accelerate/fsdp2.yaml, or no launcher where the model fits one GPU"
        )
    for name in type(config).model_fields:
        optimizer = getattr(getattr(config, name), "optimizer", None)
        if optimizer is not None and optimizer.kind == "muon":
            raise ConfigError(
                f"{name}.optimizer.kind must be adamw where models are divided between processes (FSDP, "
                "ZeRO-3): muon is for whole matrices"
            )


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
