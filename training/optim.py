"""Muon for hidden weight matrices, AdamW for everything else, as one optimizer that a trainer can hold.

A model trained from scratch learns to copy in about a third of the steps that AdamW alone needs
(docs/decisions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.config import OptimizerConfig

# Muon's orthogonalized update has unit scale, so its learning rate is this many times AdamW's.
MUON_SCALE = 10.0


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the 2-D weights of hidden layers, `AdamW` on embeddings, heads and norms.

    Both share this object's `param_groups`, so a scheduler drives both.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float) -> None:
        hidden: list[torch.nn.Parameter] = []
        other: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            matrix = parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "score"))
            (hidden if matrix else other).append(parameter)
        self.muon = torch.optim.Muon(hidden, lr=learning_rate * MUON_SCALE, weight_decay=weight_decay)
        self.adamw = torch.optim.AdamW(other, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay)
        super().__init__([*hidden, *other], {})
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        # Loading replaces the inner group dictionaries.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.kind == "muon":
        return MuonWithAdamW(model, config.learning_rate, config.weight_decay)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused: the same steps to the last bit every time, in a third of the time (docs/LOG.md, 2026-11-24).
    return torch.optim.AdamW(
        trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
