"""Who sends a request, and what that may do."""

from dataclasses import dataclass
from typing import Literal, get_args

from app.observe import current

Scope = Literal["improve", "chat", "batch", "feedback", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use; None: the server's own limits only."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request. `owner` is the public id of its key, and None on a server without keys: what
    a request makes belongs to its owner, and nobody else sees it."""

    owner: str | None
    scopes: frozenset[Scope]
    limits: KeyLimits = KeyLimits()


ANYBODY = Identity(None, SCOPES)
"""Everybody, on a server without keys."""


def caller() -> Identity:
    """The sender of the request that is being served."""
    state = current.get()
    return (state.identity if state else None) or ANYBODY
