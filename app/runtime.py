"""The models of a running server: whether they are up, whether they are ready, how they stop."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from app.engines.base import Engine
from app.errors import AppError, CheckpointError, Overloaded, StoreError
from app.improve.options import Models
from app.lifecycle import Lifecycle, stopping
from app.served import ModelFactory, Served
from app.settings import Settings
from app.start import start_models

__all__ = ["ModelFactory", "Runtime", "Served", "start_models"]
log = logging.getLogger(__name__)


@dataclass
class Runtime:
    """What the routers reach through `request.app.state.runtime`."""

    settings: Settings
    factory: ModelFactory = start_models
    served: Served | None = None
    failure: str | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    stopping: bool = False
    ready_after_s: float | None = None
    _started: float = field(default_factory=time.monotonic)
    _task: "asyncio.Task[None] | None" = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the models are up, or when they could not be started."""

    def start(self) -> None:
        """Begin to start the models; the server answers /health meanwhile."""
        self._task = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self.served = await self.factory(self.settings)
            self.ready_after_s = time.monotonic() - self._started
        except (CheckpointError, StoreError) as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("start-up failed")
            self.failure = f"start-up failed ({type(error).__name__})"
        finally:
            self.settled.set()

    async def stop(self) -> None:
        """Stop the models, also while they start."""
        self.stopping = True
        if self._task and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.served:
            await self.served.close()

    @property
    def models(self) -> Models:
        """Raises `Overloaded` while the server starts, stops, or could not start."""
        if self.stopping:
            raise stopping()
        if self.served is None:
            raise Overloaded(
                "The models are not ready yet. /health/ready says why; try again in some seconds.",
                code="not_ready",
            )
        return self.served.models

    async def not_ready_because(self) -> list[str]:
        """Empty when the server can answer; otherwise the reasons, fit to be shown."""
        if self.stopping or self.lifecycle.draining:
            return ["the server is stopping"]
        if self.failure:
            return [self.failure]
        if self.served is None:
            return ["the models are starting"]
        models = self.served.models
        engines: dict[str, Engine | None] = {"policy": models.policy, "improver": models.improver}
        reasons = []
        for name, engine in engines.items():
            try:
                if engine:
                    await engine.check_health()
            except AppError as error:
                reasons.append(f"{name}: {error.message}")
        return reasons

    async def degraded_because(self) -> list[str]:
        """What does not work while the server can still answer, fit to be shown: best_effort goes without."""
        scorer = self.served.models.scorer if self.served else None
        try:
            if scorer:
                await scorer.check_health()
        except AppError as error:
            return [f"gap reward: {error.message}"]
        return []
