"""A run as it is stored; JSON and hashes as the store has them."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from app.improve.events import StopReason

dumps: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
RunState = Literal["running", "completed", "failed", "cancelled"]


@dataclass(slots=True)
class RunRecord:
    """One run: what its row holds and, while it is written, its events.

    `request`, `result` and `error` are JSON text, and so is an event; events are numbered from 1.
    """

    id: str
    created: float
    request: str
    owner: str | None = None
    state: RunState = "running"
    finished: float | None = None
    stop_reason: StopReason | None = None
    iterations: int | None = None
    result: str | None = None
    error: str | None = None
    events: list[str] = field(default_factory=list)
    # The writer's notes: whether the row is in the database, how many events are, whether all of it is.
    has_row: bool = False
    written: int = 0
    stored: "asyncio.Future[bool] | None" = None

    def size(self) -> int:
        """Characters of everything that is stored of it, as an estimate of bytes."""
        texts = (self.request, self.result or "", self.error or "")
        return sum(map(len, texts)) + sum(len(event) + 1 for event in self.events)


def digest(*parts: str | None) -> str:
    """A hash of some texts in their order."""
    return hashlib.sha256(dumps(parts).encode()).hexdigest()
