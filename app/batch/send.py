"""Send the lines of a batch to running servers, one request each: what `pit batch` does, here or on Ray."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, get_args

import httpx

from app.api.render import dumps
from app.batch.lines import BadLine, printable_custom_id, result_line, unexecuted_line
from app.schemas_batch import BatchEndpoint

ENDPOINTS = get_args(BatchEndpoint)
BUSY, BUSY_S = (429, 503), 300.0
"""The server says to come back later, which is done for so long."""
BROKEN, BROKEN_ATTEMPTS = (500, 502, 504), 3
LONGEST_PAUSE_S = 60.0
NEVER_REACHED_S, UNREACHABLE_S = 5.0, 60.0
"""After so long without any connection the whole batch is given up; it can be resumed."""


class InputError(Exception):
    """An input file that cannot be used. The message says why, and what to do."""


class Unreachable(Exception):
    """No server answers. The message names them."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where lines go. `urls` are servers that take the same requests."""

    urls: tuple[str, ...]
    endpoint: str = "/v1/improve"
    key: str | None = None
    concurrency: int = 8
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Request:
    """A line, ready to be sent."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_line(raw: bytes | str, number: int, endpoint: str) -> Request | str:
    """The request of an input line, or its line of the output where it is none. `method` and `url` may be
    left out; `number` names a line that has no custom_id."""
    custom_id = f"line-{number}"
    try:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            raise BadLine("invalid_json_line", "This line is not parseable as valid JSON.") from None
        if not isinstance(line, dict):
            raise BadLine("invalid_json_line", "This line is not a JSON object.")
        custom_id = printable_custom_id(line)
        url, body = line.get("url", endpoint), line.get("body")
        if line.get("method", "POST") != "POST" or url not in ENDPOINTS:
            raise BadLine("invalid_url", f"method must be POST, and url one of {', '.join(ENDPOINTS)}.")
        if not isinstance(body, dict):
            raise BadLine("invalid_body", "body is missing, or not a JSON object.")
        if body.get("stream"):
            raise BadLine("invalid_body", "A batch gives whole answers, and no streams: leave stream out.")
    except BadLine as bad:
        return unexecuted_line(custom_id, bad.code, bad.message)
    if url == "/v1/improve":
        body = {"store": False} | body
    return Request(custom_id, url, body)


class Sender:
    """Use it as a context; `answer` may be called `Target.concurrency` times side by side."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._stack = AsyncExitStack()
        self._clients: list[httpx.AsyncClient] = []
        self._numbers = itertools.count()
        self._reached = False

    async def __aenter__(self) -> "Sender":
        target, most = self.target, self.target.concurrency
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        for url in target.urls:
            client = httpx.AsyncClient(
                base_url=url.rstrip("/").removesuffix("/v1"),
                headers={"authorization": f"Bearer {target.key}"} if target.key else None,
                limits=limits,
                timeout=httpx.Timeout(10.0, read=target.timeout_s, pool=None),
            )
            self._clients.append(await self._stack.enter_async_context(client))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def answer(self, request: Request) -> str:
        """The line of the output for a request, whatever the server says of it. What is busy or broken is
        asked again, another server first where there are several. Raises `Unreachable`."""
        clock = asyncio.get_running_loop().time
        began, lost_since = clock(), clock()
        first, servers = next(self._numbers), len(self._clients)
        for attempt in itertools.count(1):
            client = self._clients[(first + attempt) % servers]
            retry_after = None
            try:
                response = await client.post(request.url, json=request.body)
            except (httpx.TransportError, httpx.InvalidURL):
                if clock() - lost_since > (UNREACHABLE_S if self._reached else NEVER_REACHED_S):
                    raise Unreachable(f"no server answers at {', '.join(self.target.urls)}") from None
            else:
                self._reached, lost_since = True, clock()
                if not _worth_another(response, attempt, clock() - began):
                    return _line(request, response)
                retry_after = response.headers.get("retry-after")
            if attempt % servers == 0:  # all of them were asked
                await asyncio.sleep(_pause_s(attempt // servers, retry_after))
        raise AssertionError("the loop has no end")

    async def answer_all(self, requests: Iterable[Request]) -> list[str]:
        """The lines of the output for all of these, in their order. Raises `Unreachable`."""
        waiting = asyncio.Semaphore(self.target.concurrency)

        async def one(request: Request) -> str:
            async with waiting:
                return await self.answer(request)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(request)) for request in requests]
        except* Unreachable as several:
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]


def _worth_another(response: httpx.Response, attempt: int, seconds: float) -> bool:
    """Whether a request may be answered if it is sent again: not what is refused for a field of its own."""
    if response.status_code in BROKEN:
        return attempt < BROKEN_ATTEMPTS
    return response.status_code in BUSY and seconds < BUSY_S and b'"param":"' not in response.content


def _pause_s(attempt: int, retry_after: str | None) -> float:
    """How long to wait: what the server says, or twice as long each time, a little different for each."""
    if retry_after and retry_after.isdecimal() and len(retry_after) < 6:
        return min(float(retry_after), LONGEST_PAUSE_S)
    return float(min(2 ** (attempt - 1), LONGEST_PAUSE_S)) * random.uniform(0.5, 1)


def _line(request: Request, response: httpx.Response) -> str:
    try:
        body = dumps(json.loads(response.content))
    except (ValueError, RecursionError):
        body = dumps({"error": {"message": "The answer is not JSON.", "type": "api_error", "code": None}})
    request_id = response.headers.get("x-request-id", "")
    line = result_line(request.custom_id, request_id, response.status_code, body)
    return line.encode("utf-8", "replace").decode()
