"""What writes the responses that RL learns from: transformers in the process, or vLLM.

`vllm_colocate` runs vLLM on the training GPUs, `vllm_server` asks a server on others, which
`trl vllm-serve --model ANCHOR` starts (in TRL 1.16 it runs `vllm serve` with the options that the trainer
needs, and says which); the trainer sends it the weights after each step.
TRL 1.16 supports vLLM up to 0.31 and warns beside the 0.32 that the server of this project uses. Neither
has been run here, for want of a GPU: the mapping of the options and the refusals are tested.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.config import RlConfig, RunConfig


def rollout_arguments(rl: RlConfig) -> dict[str, Any]:
    """Keyword arguments for `RLOOConfig`."""
    if rl.rollouts == "transformers":
        return {}
    if rl.rollouts == "vllm_server":
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": rl.server}
    return {"use_vllm": True, "vllm_mode": "colocate"}


def check_rollouts(config: RunConfig) -> None:
    """Raises `ConfigError`: vLLM or the GPU that it needs is missing, or the server's URL is none."""
    for name in ("rl_policy", "rl_improver"):
        rl: RlConfig | None = getattr(config, name)
        if rl is None or rl.rollouts == "transformers":
            continue
        if find_spec("vllm") is None:
            raise ConfigError(f"{name}.rollouts={rl.rollouts} needs vLLM: pip install 'pit-serve[gpu]'")
        if rl.server is not None and not rl.server.startswith(("http://", "https://")):
            raise ConfigError(f"{name}.server={rl.server}: give a URL such as http://HOST:8000")
        if not _gpu():
            raise ConfigError(
                f"{name}.rollouts={rl.rollouts} needs a GPU, and there is none (weights travel by NCCL); "
                f"set {name}.rollouts=transformers"
            )


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()
