"""A run as it is stored; JSON and hashes as the store has them."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.improve.events import StopReason

dumps: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
RunState = Literal["running", "completed", "failed", "cancelled"]
EXCERPT = 200
"""Characters of a prompt that a list of runs shows."""
BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(slots=True)
class RunRecord:
    """One run: what its row holds and, while it is written, its events.

    `request`, `result` and `error` are JSON text, and so is an event; events are numbered from 1. A list
    shows `excerpt`, the beginning of the last message, and of the result whether it `improved` and the
    `win_probability` of what was accepted last.
    """

    id: str
    created: float
    request: str
    owner: str | None = None
    state: RunState = "running"
    finished: float | None = None
    stop_reason: StopReason | None = None
    iterations: int | None = None
    excerpt: str | None = None
    improved: bool | None = None
    win_probability: float | None = None
    result: str | None = None
    error: str | None = None
    events: list[str] = field(default_factory=list)
    # The writer's notes: whether the row is in the database, how many events are, whether all of it is.
    has_row: bool = False
    written: int = 0
    stored: "asyncio.Future[bool] | None" = None

    def size(self) -> int:
        """Characters of everything that is stored of it, as an estimate of bytes."""
        texts = (self.request, self.excerpt or "", self.result or "", self.error or "")
        return sum(map(len, texts)) + sum(len(event) + 1 for event in self.events)

    def describe(self) -> None:
        """Fill in what a list shows, of a run that an earlier version has stored without it."""
        content = json.loads(self.request)["messages"][-1]["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        self.excerpt = excerpt(" ".join(texts))
        if self.result is not None:
            result = json.loads(self.result)
            self.improved = result.get("improved")
            self.win_probability = last_win(result.get("iterations", ()))


def excerpt(text: str) -> str:
    """The beginning of a text in one line, at most `EXCERPT` characters: without NUL, which PostgreSQL does
    not store, and without what a terminal would obey."""
    return BLANK.sub(" ", text[: 10 * EXCERPT]).strip()[:EXCERPT]


def last_win(iterations: Sequence[Mapping[str, Any]]) -> float | None:
    """The win probability of the last iteration that was accepted."""
    accepted = [one["win_probability"] for one in iterations if one["accepted"]]
    return accepted[-1] if accepted else None


def digest(*parts: str | None) -> str:
    """A hash of some texts in their order."""
    return hashlib.sha256(dumps(parts).encode()).hexdigest()
