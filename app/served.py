"""What a start of models gives."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from app.checkpoint import Flag
from app.engines.base import Engine, Scorer
from app.improve.options import Models
from app.settings import Settings


@dataclass
class Served:
    """Models that are up, and how to stop them. `notes`: what the user should know about the start."""

    models: Models
    close: Callable[[], Awaitable[None]]
    engine_version: str = ""
    engine_metrics: CollectorRegistry | None = None
    """What the engines count themselves."""
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, str]:
        """The checkpoints, by what they do."""
        named = {
            "policy": self.models.policy,
            "improver": self.models.improver,
            "gap reward": self.models.scorer,
        }
        return {what: model.model_id for what, model in named.items() if model is not None}


@dataclass
class Started:
    """What one of the two ways to start gives: the engines it was asked for, perhaps the gap reward."""

    engines: dict[Flag, Engine]
    scorer: Scorer | None
    close: Callable[[], Awaitable[None]]
    version: str = ""
    metrics: CollectorRegistry | None = None
    notes: tuple[str, ...] = ()


ModelFactory = Callable[[Settings], Awaitable[Served]]
"""Starts the models that the settings name. Raises `CheckpointError`. Tests inject their own."""
