"""A line to Redis: one connection, on which calls of scripts go in the order in which they are made.

Calls that come while others are on their way go together afterwards. So a busy server costs Redis few reads
and itself few writes, and whatever is given back is there before the next one asks.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

SOCKET_TIMEOUT_S = 1.0
"""After so long without an answer the connection is given up, with the calls on it."""
UNREACHABLE = (RedisError, OSError, TimeoutError)


class Script:
    """A Lua script beside this file."""

    def __init__(self, name: str) -> None:
        self.text = files("app.limits").joinpath(f"{name}.lua").read_text(encoding="utf-8")
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(eq=False, slots=True)
class _Call:
    script: Script
    keys: Sequence[str]
    arguments: Sequence[str | int]
    answer: "asyncio.Future[Any]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Line:
    """See the module."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` for a URL that is none of Redis."""
        self.redis = Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._calls: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None

    def call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> "asyncio.Future[Any]":
        """Run a script. The future raises one of `UNREACHABLE`; whether the script has run is not known
        then."""
        call = _Call(script, keys, arguments)
        self._calls.append(call)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return call.answer

    async def ping(self) -> None:
        """Raises one of `UNREACHABLE`."""
        await self.redis.ping()

    async def close(self) -> None:
        """After what was called."""
        if self._sender:
            await self._sender
        await self.redis.aclose()

    async def _send(self) -> None:
        try:
            while self._calls:
                calls, self._calls = self._calls, []
                missing = await self._try(calls)
                if missing and await self._load(missing):
                    self._calls = missing + self._calls
        finally:
            self._sender = None

    async def _load(self, calls: list[_Call]) -> bool:
        """Teach the scripts to a Redis that does not know them yet, or any more: it has run none of these."""
        try:
            for text in {call.script.text for call in calls}:
                await self.redis.script_load(text)
        except UNREACHABLE as error:
            for call in calls:
                call.answer.set_exception(error)
            return False
        return True

    async def _try(self, calls: list[_Call]) -> list[_Call]:
        """Send the calls together and answer them, but for those whose script is not there."""
        pipeline = self.redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.digest, len(call.keys), *call.keys, *call.arguments)
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except UNREACHABLE as error:
            answers = [error] * len(calls)
        missing = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, NoScriptError):
                missing.append(call)
            elif isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)
        return missing
