"""Lets requests in by their API keys, before anything else of them is read.

All keys of the database are held in memory, and read again every two seconds: a request waits for no
database, guesses leave nothing in memory, and revoking a key works in every server within `REVOKED_WITHIN_S`.
A key that is not among them has the table read once more, for all such requests at once.
"""

import asyncio
import contextlib
import hmac
import logging
import time
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope as Request

from app.access import need
from app.errors import Forbidden, Overloaded, StoreError, Unauthorized, from_status
from app.given_keys import given_keys
from app.security import ANYBODY, KEY, NOBODY, Identity, StoredKey, digest
from app.settings import Settings
from app.store.database import Database, reason
from app.store.keys import KeyTable, stored_keys
from app.telemetry import Telemetry, log_failure

log = logging.getLogger(__name__)
LOOK_S = 2.0
"""How often the keys are read."""
REVOKED_WITHIN_S = 5.0
"""A revoked key is refused after so long, while the database answers: LOOK_S, and the time of a look."""
PAUSE_S = 0.2
"""Between two looks, however many unknown keys come."""
MAX_HEADER = 1024
UNKNOWN = "This API key is not known here. Send the whole of it, as it was shown once."
HOW = "Send the header Authorization: Bearer KEY (pit's commands: --key, or the variable PIT_API_KEY)."


class KeyRing:
    """The keys of one server. `asks`: whether it asks for keys; None: not known yet, so nobody is let in."""

    def __init__(self, settings: Settings, database: Database | None, telemetry: Telemetry) -> None:
        """Raises `SettingsError` for keys in the settings that cannot be used."""
        self._given = given_keys(settings)
        self._table = KeyTable(database) if database else None
        self._outage_s, self._refusals = settings.keys_outage_s, telemetry.key_refusals
        self.asks: bool | None = None if database else False
        if settings.require_keys == "insecure-never":
            self.asks, self._table = False, None
        elif settings.require_keys == "always" or self._given:
            self.asks = True
        self._rows: list[Any] = []
        self._keys: dict[bytes, tuple[StoredKey, Identity]] = {}
        self._read = -float("inf")
        self._failing: bool | None = None  # None: not read yet
        self._wanted, self._looked = asyncio.Event(), asyncio.Event()
        self._settled = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys for the first time, and go on reading. The database is open."""
        if self._table:
            await self._look()
            self._task = asyncio.create_task(self._loop())

    def settle(self) -> None:
        """The engines are forked: from now on a connection may stay open between two looks."""
        self._settled = True

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def problem(self) -> str | None:
        """Why nobody with a key of the database is let in, fit to be shown; None: they are."""
        if self._table is None or not self._failing or time.monotonic() - self._read < self._outage_s:
            return None
        return "the database of API keys does not answer"

    async def admit(self, request: Request) -> Identity:
        """Who sends this request. Raises `Unauthorized`, `Forbidden`, `NotFound` for an unlisted path,
        and `Overloaded` where the database does not answer for a key that is not known."""
        wanted = need(request["path"])
        if wanted == "open":
            return NOBODY if self.asks is not False else ANYBODY
        identity = ANYBODY if self.asks is False else await self._identify(request)
        if wanted is None:
            raise from_status(404, request["path"], request["method"])
        if wanted != "any key" and not identity.may(wanted):
            self._refusals.labels("scope").inc()
            raise Forbidden(f"This API key lacks the scope {wanted!r}. Use one that has it.", scope=wanted)
        return identity

    async def _identify(self, request: Request) -> Identity:
        if self.asks is None:
            self._unavailable()
        token = self._bearer(request)
        match = KEY.fullmatch(token)
        if match and (found := self._keys.get(match[1])):
            return self._check(match[2], *found)
        hashed = digest(token)
        fitting = [key.identity for key in self._given if key.fits(hashed)]
        if fitting:
            return fitting[0]
        if match and self._table:
            await self._look_again()
            if found := self._keys.get(match[1]):
                return self._check(match[2], *found)
        raise self._refused("unknown", UNKNOWN)

    def _bearer(self, request: Request) -> bytes:
        given: list[bytes] = [value for name, value in request["headers"] if name == b"authorization"]
        if not given:
            self._refusals.labels("missing").inc()
            raise Unauthorized(f"This server asks for an API key. {HOW}")
        scheme, _, token = given[0].strip().partition(b" ")
        token = token.lstrip()
        if len(given) > 1 or scheme.lower() != b"bearer" or not token or len(given[0]) > MAX_HEADER:
            raise self._refused("malformed", f"The header Authorization holds no API key. {HOW}")
        return token

    def _check(self, secret: bytes, key: StoredKey, identity: Identity) -> Identity:
        if not hmac.compare_digest(digest(secret), key.digest):
            raise self._refused("unknown", UNKNOWN)
        # Only who has the secret learns what has become of the key.
        if (state := key.state(time.time())) != "active":
            what = "has expired" if state == "expired" else "has been revoked"
            raise self._refused(state, f"This API key {what}. Ask for a new one.")
        if time.monotonic() - self._read > self._outage_s:
            self._unavailable()
        return identity

    def _refused(self, why: str, message: str) -> Unauthorized:
        self._refusals.labels(why).inc()
        return Unauthorized(message, challenge='Bearer error="invalid_token"')

    def _unavailable(self) -> None:
        """Nobody is let in because it is not known who he is."""
        self._refusals.labels("unavailable").inc()
        raise Overloaded(
            "API keys cannot be looked up now. Try again in some seconds.", code="keys_unavailable"
        )

    async def _look_again(self) -> None:
        """Wait for a look that begins from now on. Raises `Overloaded` where the database does not answer."""
        if self._failing is False:
            self._wanted.set()
            await self._looked.wait()
        if self._failing is not False:
            self._unavailable()

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_S - PAUSE_S)
            self._wanted.clear()
            # Who comes while the look runs waits for the next one: this one may have read too early.
            looked, self._looked = self._looked, asyncio.Event()
            await self._look()
            looked.set()

    async def _look(self) -> None:
        assert self._table is not None
        database, began = self._table.database, time.monotonic()
        try:
            async with asyncio.timeout(database.timeout_s):
                rows = await self._table.rows()
                if not self._settled:
                    await database.disconnect()
            if rows != self._rows:
                self._take(rows)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if not self._failing:
                log.warning("the API keys cannot be read: %s", reason(error))
            self._failing = True
        except Exception as error:
            log_failure("reading the API keys", error)
            self._failing = True
        else:
            self._read, self._failing = began, False
            # Once keys are asked for it stays so: revoking the last one opens nothing.
            self.asks = bool(self.asks or rows)

    def _take(self, rows: list[Any]) -> None:
        """Hold these keys. Only what has changed is made anew: requests wait meanwhile."""
        known = set(self._rows)
        changed = stored_keys(row for row in rows if row not in known)
        held = self._keys | {key.id.encode(): (key, _identity(key)) for key in changed}
        self._keys = {key_id: held[key_id] for key_id in (row[0].encode() for row in rows)}
        self._rows = rows


def _identity(key: StoredKey) -> Identity:
    return Identity(key.owner, frozenset(key.scopes), key.limits)


async def has_keys(settings: Settings) -> bool:
    """Whether the database has any key. True where it does not answer: nobody is let in until it does."""
    database = Database(settings.database, settings.store_timeout_s)
    try:
        if database.is_missing():
            return False
        async with asyncio.timeout(database.timeout_s):
            return bool(await KeyTable(database).rows())
    except (SQLAlchemyError, OSError, TimeoutError, StoreError) as error:
        log.warning("whether there are API keys is not known (%s): they are asked for", reason(error))
        return True
    finally:
        await database.close()
