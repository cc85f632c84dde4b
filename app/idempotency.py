"""`Idempotency-Key`: a request that is sent again is not executed again (docs/idempotency.md).

An ASGI middleware before the routes that make something. The first request with a key is executed in a task
of its own, which its client's disconnect does not cancel, and its answer is recorded; everybody with the same
key reads the record, while it grows. A success is kept in the database, which also decides which of several
servers executes.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AppError, BadRequest, Conflict, KeyReused, Overloaded
from app.observe import current
from app.runs import Runs
from app.runtime import Runtime
from app.security import caller
from app.store.answers import LEASE_S, Claim, KeptAnswer
from app.store.records import digest
from app.store.store import Store
from app.telemetry import Telemetry

log = logging.getLogger(__name__)
ROUTES = frozenset(
    ("/v1/improve", "/v1/chat/completions", "/v1/completions", "/v1/feedback", "/v1/batches")
)
KEY = re.compile(r"[\x20-\x7e]{1,255}")
REPLAYED = (b"idempotent-replayed", b"true")
WAIT_S = 20.0
"""How long a request waits for another server that executes the same one."""
POLL_S = 0.25
KEEP_TRIES = 3


class Idempotency:
    """See the module. It stands inside of `RequestContext`: who sends the request is known, the body read."""

    def __init__(
        self, app: ASGIApp, *, runs: Runs, runtime: Runtime, telemetry: Telemetry, live: "Executions"
    ) -> None:
        self.app, self.runs, self.runtime, self.telemetry, self.live = app, runs, runtime, telemetry, live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = None
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ROUTES:
            key = Headers(scope=scope).get("idempotency-key")
        if key is None:
            await self.app(scope, receive, send)
            return
        # A replay asks no router, and the metrics want the route's name.
        scope.setdefault("route", SimpleNamespace(path=scope["path"]))
        body = (await receive())["body"]
        outcome = "failed"
        try:
            store = self._store(key, body)
            execution, mine = self._execution(store, scope, key, body)
            await execution.follow(receive, send, mine=mine)
            outcome = "executed" if mine and not execution.is_replay else "replayed"
        except _ClientGone:
            self.telemetry.disconnects.labels(scope["path"]).inc()
        except (Conflict, KeyReused):
            outcome = "refused"
            raise
        finally:
            self.telemetry.idempotent.labels(outcome).inc()

    def _store(self, key: str, body: bytes) -> Store:
        """Where the answer is kept. Raises `BadRequest` for a key that is none, and where nothing is to be
        kept; `Overloaded` while the models start, since no connection may be open then."""
        if not KEY.fullmatch(key):
            raise BadRequest(
                "The header Idempotency-Key must be 1 to 255 printable ASCII characters.",
                param="idempotency-key",
            )
        if self.runs.store is None:
            raise BadRequest(
                "This server keeps nothing (database: none), so no answer for an Idempotency-Key either."
                " Leave the header out.",
                param="idempotency-key",
            )
        if _wants_nothing_kept(body):
            raise BadRequest(
                "An Idempotency-Key has the answer kept for a day, and store: false has nothing kept. Leave"
                " one of them out.",
                param="store",
            )
        _ = self.runtime.models
        return self.runs.store

    def _execution(self, store: Store, scope: Scope, key: str, body: bytes) -> "tuple[Execution, bool]":
        """The execution of this request on this server, and whether it begins with this request. Raises
        `KeyReused`."""
        name, fingerprint = digest(caller().owner, scope["path"], key), hashlib.sha256(body).hexdigest()
        if execution := self.live.get(name):
            if execution.fingerprint != fingerprint:
                raise _reused()
            return execution, False
        execution = self.live[name] = Execution(store, name, fingerprint, self.live)

        async def run(send: Send) -> None:
            await self.app(dict(scope), _only(body), send)

        async def counted() -> None:
            # Its client may leave before its end: a server that drains waits for it all the same.
            with self.runtime.lifecycle.request(scope["path"]):
                await execution.resolve(run)

        execution.task = asyncio.create_task(counted())
        return execution, True


class Executions(dict[str, "Execution"]):
    """Those of this server, by the hash of owner, path and key."""

    async def stop(self) -> None:
        """Cancel them; their keys are free again."""
        tasks = [execution.cancel() for execution in self.values()]
        await asyncio.gather(*tasks, return_exceptions=True)


class Execution:
    """One request with a key, on this server: executed here, or answered by another, or long ago.

    `fingerprint` is the hash of its body. The record is a list of ASGI messages.
    """

    task: "asyncio.Task[None]"

    def __init__(self, store: Store, key: str, fingerprint: str, live: Executions) -> None:
        self.store, self.key, self.fingerprint, self.live = store, key, fingerprint, live
        self.is_replay = False
        self._record: list[Message] = []
        self._last: Message | None = None
        self._pings = 0
        self._error: Exception | None = None
        self._ended = self._cancelled = False
        self._news = asyncio.Event()

    def cancel(self) -> "asyncio.Task[None]":
        self._cancelled = True
        self.task.cancel()
        return self.task

    async def resolve(self, run: Callable[[Send], Awaitable[None]]) -> None:
        """Come to an answer. What is raised here is raised for everybody who follows."""
        try:
            claim = await self._claim()
            if claim.answer:
                self.is_replay, self._record = True, _messages(claim.answer)
            else:
                await self._execute(claim, run)
        except asyncio.CancelledError:
            self._error = Overloaded("The server is stopping. Send the request to another one.")
        except Exception as error:
            self._error = error
        finally:
            self._ended = True
            self.live.pop(self.key, None)  # whoever comes now asks the database
            self._tell()

    async def follow(self, receive: Receive, send: Send, *, mine: bool) -> None:
        """Send the answer as it grows. Raises `_ClientGone`, and what the execution raised."""
        seen, pings = 0, self._pings
        gone = asyncio.create_task(_disconnect(receive))
        try:
            while True:
                news, ended = self._news, self._ended
                while seen < len(self._record):
                    await send(_copy(self._record[seen], replayed=self.is_replay or not mine))
                    seen += 1
                if ended:
                    break
                if pings != self._pings:
                    pings = self._pings
                    await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
                elif news is self._news:
                    await _either(news, gone, counts=mine)
        finally:
            gone.cancel()
        if self._error:
            raise self._error

    async def _claim(self) -> Claim:
        """The key, or the answer that another server gave. Raises `KeyReused`, `Conflict` where the other
        takes long, `Overloaded` where the database does not answer."""
        deadline = time.monotonic() + WAIT_S
        while True:
            async with self.store.database.answering():
                claim = await self.store.answers.claim(self.key, self.fingerprint)
            if claim.fingerprint != self.fingerprint:
                raise _reused()
            if claim.holder or claim.answer:
                return claim
            if time.monotonic() > deadline:
                raise _in_progress()
            await asyncio.sleep(POLL_S)

    async def _execute(self, claim: Claim, run: Callable[[Send], Awaitable[None]]) -> None:
        """Only a success is kept; the key of what failed is free again."""
        state = current.get()
        renewing = asyncio.create_task(self._renew(claim))
        succeeded = False
        try:
            await run(self._take)
            failed = self._cancelled or (state is not None and state.error is not None)
            succeeded = bool(self._record) and 200 <= self._record[0]["status"] < 300 and not failed
        finally:
            renewing.cancel()
            if not succeeded:
                await self._attempt(self.store.answers.release(claim))
        last = [self._last] if self._last else []
        if succeeded:
            await self._keep(claim, _answer([*self._record, *last]))
        self._record += last

    async def _take(self, message: Message) -> None:
        """The `send` of the application. The last message waits until the answer is kept: an answer that
        was given whole is the one that is given again."""
        if message["type"] == "http.response.body":
            if message.get("body", b"").startswith(b":"):  # a comment, for those who wait now
                self._pings += 1
                self._tell()
                return
            if not message.get("more_body"):
                self._last = message
                return
        self._record.append(message)
        self._tell()

    async def _keep(self, claim: Claim, answer: KeptAnswer) -> None:
        for _ in range(KEEP_TRIES):
            if await self._attempt(self.store.answers.keep(claim, answer)):
                return
        log.warning("the answer for an Idempotency-Key could not be kept: sent again, it is executed again")

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 4)
            await self._attempt(self.store.answers.renew(claim))

    async def _attempt(self, work: Awaitable[None]) -> bool:
        """False where the database does not answer."""
        try:
            async with self.store.database.answering():
                await work
        except AppError:
            return False
        return True

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class _ClientGone(Exception):
    """Who waited for the answer went away; the execution goes on."""


async def _either(news: asyncio.Event, gone: "asyncio.Task[None]", *, counts: bool) -> None:
    """Wait for news. Raises `_ClientGone`. `counts`: this time is the execution's own, and measured there."""
    state = None if counts else current.get()
    waiting = asyncio.create_task(news.wait())
    if state:
        state.pause()
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if state:
            state.resume()
    if gone.done():
        raise _ClientGone


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _only(body: bytes) -> Receive:
    """A `receive` that gives the body, and never a disconnect."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return receive


def _copy(message: Message, *, replayed: bool) -> Message:
    """A message to send: whoever sends it on adds headers of the request."""
    if message["type"] == "http.response.start" and replayed:
        return {**message, "headers": [*message["headers"], REPLAYED]}
    return dict(message)


def _answer(messages: list[Message]) -> KeptAnswer:
    start, *bodies = messages
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return KeptAnswer(start["status"], headers, b"".join(message.get("body", b"") for message in bodies))


def _messages(answer: KeptAnswer) -> list[Message]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    return [
        {"type": "http.response.start", "status": answer.status, "headers": headers},
        {"type": "http.response.body", "body": answer.body, "more_body": False},
    ]


def _wants_nothing_kept(body: bytes) -> bool:
    if b'"store"' not in body:
        return False
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False  # what is wrong with it is said where it is read
    return isinstance(found, dict) and found.get("store") is False


def _reused() -> KeyReused:
    return KeyReused(
        "This Idempotency-Key came with another body before. Send the same bytes again, or draw a new key.",
        param="idempotency-key",
    )


def _in_progress() -> Conflict:
    error = Conflict(
        "The first request with this Idempotency-Key is still being answered. Try again in some seconds.",
        param="idempotency-key",
        code="idempotency_in_progress",
    )
    error.retry_after = 5
    return error
