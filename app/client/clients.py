"""The two clients. They send what calls.py and following.py say, and do nothing else."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from typing import Any, Self, TypeVar, Unpack, overload

import httpx
from pydantic import BaseModel

from app import DEFAULT_URL
from app.client import calls
from app.client.calls import Call, Conversation, FeedbackFields, ImproveOptions
from app.client.events import Event
from app.client.failures import NoAnswer, raise_for, reaching
from app.client.following import Following
from app.errors import AppError
from app.schemas import Improvement, RunList, Score, ScoreList, StoredRun
from app.schemas_feedback import FeedbackList, FeedbackOut, FeedbackType

Answer = TypeVar("Answer", bound=BaseModel)
CONNECT_S = 10.0
SILENCE_S = 120.0
"""Of a stream, which has a comment every 15 s once it is admitted."""
BROKE_OFF = "the connection broke before the run was finished."


def _settings(base_url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": base_url, "headers": headers, "timeout": httpx.Timeout(timeout, connect=CONNECT_S)}


def _streaming(call: Call) -> dict[str, Any]:
    return call.arguments() | {"timeout": httpx.Timeout(SILENCE_S, connect=CONNECT_S)}


class Client:
    """Use it as a context manager, or `close` it. `timeout` is in seconds, of a unary answer.

    Every method raises the server's error as an exception of app/errors.py, with `status`, `code`, `param`,
    `retry_after` (seconds) and `request_id`, and `NoAnswer` where no answer came. Nothing but a broken stream
    is tried again.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        with reaching(self.base_url):
            self._http = httpx.Client(**_settings(self.base_url, api_key, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def improve(
        self,
        messages: Conversation,
        reference: str | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[ImproveOptions],
    ) -> Improvement:
        """Improve `reference`, or a draft of the policy, as an answer to `messages`. With an
        `idempotency_key` it may be sent again without being executed again."""
        call = calls.improve(messages, reference, options).with_key(idempotency_key)
        return self._send(call, Improvement)

    def stream(
        self, messages: Conversation, reference: str | None = None, **options: Unpack[ImproveOptions]
    ) -> Generator[Event, None, None]:
        """The same, event by event, to `RunCompleted`. Goes on where a connection broke; cancels the run
        when the generator is closed before its end. Raises the error of a run that failed."""
        return self._follow(Following(calls.improve(messages, reference, options, stream=True)))

    def events(self, run_id: str, after: int = 0) -> Generator[Event, None, None]:
        """The events of a stored or running run, from the one after `after`, to its end."""
        return self._follow(Following(calls.events(run_id, after), run=run_id, after=after))

    @overload
    def score(self, messages: Conversation, candidate: str, baseline: str) -> Score: ...
    @overload
    def score(self, messages: Conversation, candidate: list[str], baseline: str) -> list[Score]: ...
    def score(
        self, messages: Conversation, candidate: str | list[str], baseline: str
    ) -> Score | list[Score]:
        """How likely `candidate`, or each of several, is better than `baseline`."""
        found = self._send(calls.score(messages, candidate, baseline), ScoreList)
        return calls.one_or_all(candidate, found)

    def feedback(self, type: FeedbackType, **fields: Unpack[FeedbackFields]) -> FeedbackOut:
        """Say what was better. It is on the server's disk when this returns."""
        return self._send(calls.feedback(type, fields), FeedbackOut)

    def list_feedback(
        self, limit: int = 20, after: str | None = None, *, run: str | None = None, since: float = 0.0
    ) -> FeedbackList:
        """The latest feedback, the newest first, or that before the feedback `after`: about one run, since a
        time in seconds since the epoch."""
        return self._send(calls.list_feedback(limit, after, run, since), FeedbackList)

    def runs(self, limit: int = 20, after: str | None = None) -> RunList:
        """The latest stored runs, the newest first, or those before the run `after`."""
        return self._send(calls.runs(limit, after), RunList)

    def run(self, run_id: str) -> StoredRun:
        return self._send(calls.run(run_id), StoredRun)

    def cancel(self, run_id: str) -> StoredRun:
        """End a run with the best so far; one that has ended stays as it is."""
        return self._send(calls.cancel(run_id), StoredRun)

    def export(self, after: int = 0) -> Generator[bytes, None, None]:
        """The preference pairs that feedback made, as pieces of JSON lines."""
        with reaching(self.base_url), self._http.stream(**_streaming(calls.export(after))) as response:
            if response.is_error:
                response.read()
                raise_for(response)
            yield from response.iter_bytes()

    def _send(self, call: Call, model: type[Answer]) -> Answer:
        with reaching(self.base_url):
            return calls.read(self._http.request(**call.arguments()), model)

    def _follow(self, following: Following) -> Generator[Event, None, None]:
        try:
            while not following.ended:
                try:
                    yield from self._connection(following)
                except AppError as error:
                    time.sleep(following.broke(error))
        finally:
            if call := following.leaving():
                with suppress(AppError):
                    self._send(call, StoredRun)

    def _connection(self, following: Following) -> Generator[Event, None, None]:
        """What one connection brings. Raises `NoAnswer` when it ends before the run."""
        call = following.next_call()
        with reaching(self.base_url), self._http.stream(**_streaming(call)) as response:
            if response.is_error:
                response.read()
            if not following.answered(response):
                return
            for chunk in response.iter_bytes():
                yield from following.feed(chunk)
        if not following.ended:
            raise NoAnswer(BROKE_OFF)


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited, and `async for` over streams. Close a stream that you
    leave early: `async with contextlib.aclosing(client.stream(...)) as events`."""

    def __init__(
        self, base_url: str = DEFAULT_URL, api_key: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        with reaching(self.base_url):
            self._http = httpx.AsyncClient(**_settings(self.base_url, api_key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def improve(
        self,
        messages: Conversation,
        reference: str | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[ImproveOptions],
    ) -> Improvement:
        call = calls.improve(messages, reference, options).with_key(idempotency_key)
        return await self._send(call, Improvement)

    def stream(
        self, messages: Conversation, reference: str | None = None, **options: Unpack[ImproveOptions]
    ) -> AsyncGenerator[Event, None]:
        return self._follow(Following(calls.improve(messages, reference, options, stream=True)))

    def events(self, run_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        return self._follow(Following(calls.events(run_id, after), run=run_id, after=after))

    @overload
    async def score(self, messages: Conversation, candidate: str, baseline: str) -> Score: ...
    @overload
    async def score(
        self, messages: Conversation, candidate: list[str], baseline: str
    ) -> list[Score]: ...
    async def score(
        self, messages: Conversation, candidate: str | list[str], baseline: str
    ) -> Score | list[Score]:
        found = await self._send(calls.score(messages, candidate, baseline), ScoreList)
        return calls.one_or_all(candidate, found)

    async def feedback(self, type: FeedbackType, **fields: Unpack[FeedbackFields]) -> FeedbackOut:
        return await self._send(calls.feedback(type, fields), FeedbackOut)

    async def list_feedback(
        self, limit: int = 20, after: str | None = None, *, run: str | None = None, since: float = 0.0
    ) -> FeedbackList:
        return await self._send(calls.list_feedback(limit, after, run, since), FeedbackList)

    async def runs(self, limit: int = 20, after: str | None = None) -> RunList:
        return await self._send(calls.runs(limit, after), RunList)

    async def run(self, run_id: str) -> StoredRun:
        return await self._send(calls.run(run_id), StoredRun)

    async def cancel(self, run_id: str) -> StoredRun:
        return await self._send(calls.cancel(run_id), StoredRun)

    async def export(self, after: int = 0) -> AsyncGenerator[bytes, None]:
        with reaching(self.base_url):
            async with self._http.stream(**_streaming(calls.export(after))) as response:
                if response.is_error:
                    await response.aread()
                    raise_for(response)
                async for chunk in response.aiter_bytes():
                    yield chunk

    async def _send(self, call: Call, model: type[Answer]) -> Answer:
        with reaching(self.base_url):
            return calls.read(await self._http.request(**call.arguments()), model)

    async def _follow(self, following: Following) -> AsyncGenerator[Event, None]:
        try:
            while not following.ended:
                try:
                    async with aclosing(self._connection(following)) as events:
                        async for event in events:
                            yield event
                except AppError as error:
                    await asyncio.sleep(following.broke(error))
        finally:
            if call := following.leaving():
                with suppress(AppError):
                    await self._send(call, StoredRun)

    async def _connection(self, following: Following) -> AsyncGenerator[Event, None]:
        call = following.next_call()
        with reaching(self.base_url):
            async with self._http.stream(**_streaming(call)) as response:
                if response.is_error:
                    await response.aread()
                if not following.answered(response):
                    return
                async for chunk in response.aiter_bytes():
                    for event in following.feed(chunk):
                        yield event
        if not following.ended:
            raise NoAnswer(BROKE_OFF)
