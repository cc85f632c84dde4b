"""A line to Redis: one connection, on which calls of scripts go in the order in which they are made.

Calls that come while others are on their way go together afterwards. So a busy server costs Redis few reads
and itself few writes, and whatever is given back is there before the next one asks.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

SOCKET_TIMEOUT_S = 5.0
"""After so long without an answer the connection is given up."""
DEADLINE_S = 0.25
"""How long a call waits for its answer."""
LOOKS = 100
"""How often it looks within that time. An event loop that is late itself, by a burst of requests, finds the
answer at one of them, and does not take its own lateness for Redis'."""
UNREACHABLE = (RedisError, OSError, TimeoutError)


def redis_url(url: str) -> str:
    """Valkey is asked as Redis is."""
    return url.replace("valkey", "redis", 1) if url.startswith("valkey") else url


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
            redis_url(url),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._calls: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None

    def call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]
    ) -> "asyncio.Future[Any]":
        """Run a script. The future raises one of `UNREACHABLE`, after `DEADLINE_S` at the latest; whether the
        script has run is not known then."""
        call = _Call(script, keys, arguments)
        self._calls.append(call)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return call.answer

    async def ping(self) -> None:
        """Raises one of `UNREACHABLE`."""
        async with asyncio.timeout(DEADLINE_S):
            await self.redis.ping()

    async def teach(self, scripts: Iterable[Script]) -> None:
        """Raises one of `UNREACHABLE`."""
        for script in scripts:
            await self.redis.script_load(script.text)

    async def close(self) -> None:
        """After what was called."""
        if self._sender:
            await self._sender
        await self.redis.aclose()

    async def _send(self) -> None:
        try:
            while self._calls:
                calls, self._calls = self._calls, []
                await self._answer(calls)
        finally:
            self._sender = None

    async def _answer(self, calls: list[_Call]) -> None:
        """Send the calls together. Without an answer in time they fail, and those that wait behind them."""
        attempt = asyncio.create_task(self._ask(calls))
        for _ in range(LOOKS):
            await asyncio.wait({attempt}, timeout=DEADLINE_S / LOOKS)
            if attempt.done():
                break
        else:
            attempt.add_done_callback(lambda late: late.cancelled() or late.exception())
            calls, self._calls = calls + self._calls, []
            _fail(calls, TimeoutError("Redis does not answer"))
            return
        try:
            answers = attempt.result()
        except Exception as error:  # whatever it is: nobody waits for ever
            _fail(calls, error)
            return
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)

    async def _ask(self, calls: list[_Call]) -> list[Any]:
        """What Redis answers, errors too. A script that it does not know yet, or any more, it is taught."""
        answers = await self._execute(calls)
        missing = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            again = [calls[number] for number in missing]
            await self.teach({call.script for call in again})
            for number, answer in zip(missing, await self._execute(again), strict=True):
                answers[number] = answer
        return answers

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.digest, len(call.keys), *call.keys, *call.arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def _fail(calls: list[_Call], error: Exception) -> None:
    for call in calls:
        call.answer.set_exception(error)
