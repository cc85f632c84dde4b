"""Shared limits that outlive their Redis: while it cannot be reached, this process counts alone."""

import asyncio
import logging

from app.limits.asks import Ask, Grant, Refusal
from app.limits.line import UNREACHABLE
from app.limits.local import LocalLimiter
from app.limits.shared import SharedLimiter
from app.telemetry import Telemetry

log = logging.getLogger(__name__)
RETRY_S = 1.0


class FallbackLimiter:
    """See `Limiter`. Redis first; after a failure the same limits here, until Redis answers again."""

    def __init__(self, shared: SharedLimiter, local: LocalLimiter, telemetry: Telemetry) -> None:
        self.shared, self.local, self.telemetry = shared, local, telemetry
        self.problem: str | None = None
        """What fails, fit to be shown; None while the limits are shared."""
        self._recovery: asyncio.Task[None] | None = None

    async def admit(self, ask: Ask) -> Grant | Refusal:
        """Waits for Redis for a quarter of a second at most."""
        if self.problem is None:
            try:
                return await self.shared.admit(ask)
            except UNREACHABLE as error:
                self._lost(error)
        return await self.local.admit(ask)

    def settle(self, grant: Grant, used: int | None) -> None:
        grant.limiter.settle(grant, used)

    async def close(self) -> None:
        if self._recovery:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self.shared.close()

    def _lost(self, error: BaseException) -> None:
        if self.problem is not None:
            return
        kind = type(error).__name__
        self.problem = f"limits: their Redis cannot be used ({kind}); this server counts alone"
        self.telemetry.limits_degraded.set(1)
        log.warning("the limits' Redis cannot be used (%s): this server counts alone meanwhile", kind)
        self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        while self.problem is not None:
            await asyncio.sleep(RETRY_S)
            try:
                await self.shared.check()
            except UNREACHABLE:
                continue
            self.problem = None
            self.telemetry.limits_degraded.set(0)
            log.warning("the limits' Redis answers again")
