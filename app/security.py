"""Who sends a request, and what that may do; what an API key is.

A key is `pit_<public id>_<secret>`. The id is no secret: it names the key in lists and logs, and owns what is
made with the key. The secret is drawn by `new_key` and never kept, only its digest.
"""

import hashlib
import re
import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from app.observe import current

Scope = Literal["improve", "chat", "batch", "feedback", "metrics", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
USUAL: tuple[Scope, ...] = ("improve", "chat", "batch", "feedback")
"""The scopes of a key for which none are named."""
KEY = re.compile(rb"pit_([0-9a-z]{12})_([0-9A-Za-z]{43})")
ID_LETTERS = string.digits + string.ascii_lowercase
SECRET_LETTERS = string.digits + string.ascii_letters
"""43 of these are 256 bits; without - and _ a double click takes the whole key."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use; None: the server's own limits only."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request. `owner` is the public id of its key (of the first one, where a key was made to
    follow another), and None on a server without keys: what a request makes belongs to its owner, and nobody
    else but an admin sees it."""

    owner: str | None
    scopes: frozenset[Scope]
    limits: KeyLimits = KeyLimits()

    def may(self, scope: Scope) -> bool:
        """Whether the scope is granted. `admin` implies every other."""
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, owner: str | None) -> bool:
        """Whether what belongs to `owner` is shown to this sender."""
        return owner == self.owner or "admin" in self.scopes


ANYBODY = Identity(None, SCOPES)
"""Everybody, on a server without keys."""
NOBODY = Identity("", frozenset())
"""The sender of a request to an open route, where keys are asked for: owns nothing, sees nothing."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the database has it. Times are seconds since the epoch."""

    id: str
    owner: str
    name: str
    digest: bytes
    scopes: tuple[Scope, ...]
    limits: KeyLimits
    created: float
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


def caller() -> Identity:
    """The sender of the request that is being served."""
    state = current.get()
    return (state.identity if state else None) or ANYBODY


def new_key(
    name: str,
    scopes: Sequence[Scope] = USUAL,
    limits: KeyLimits = KeyLimits(),
    expires_s: float | None = None,
) -> tuple[str, StoredKey]:
    """A new key, which is not kept anywhere, and what is kept of it. It is good for `expires_s` seconds."""
    key_id = "".join(secrets.choice(ID_LETTERS) for _ in range(12))
    secret = "".join(secrets.choice(SECRET_LETTERS) for _ in range(43))
    now = time.time()
    expires = None if expires_s is None else now + expires_s
    hashed = digest(secret.encode())
    stored = StoredKey(key_id, key_id, name, hashed, tuple(scopes), limits, now, expires)
    return f"pit_{key_id}_{secret}", stored


def digest(secret: bytes) -> bytes:
    """What is kept of a secret.

    A plain fast hash is right here: slow ones make guessing dear where people choose passwords. Nobody
    guesses 256 random bits, whatever a guess costs, and this is computed for every request.
    """
    return hashlib.sha256(secret).digest()
