"""A pool of upstream servers that answer alike: which one to ask, when to ask another, when to give up.

- A request goes to the least busy upstream. One that names a conversation goes to the upstream that its
  beginning hashes to (rendezvous hashing), where the prefix cache knows it, unless that one is much busier.
- Health checks run beside the requests, and less often while an upstream does not answer. An upstream whose
  requests fail again and again is left alone for a while (`Breaker`).
- A request is sent again, elsewhere if possible, only while nothing of the answer was passed on, and only
  after a failed connection, silence, or a refusal for the moment (429, 502, 503).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from app.engines.breaker import Breaker
from app.errors import AppError, BadRequest, ContextTooLong, EngineFailed, Overloaded
from app.observe import trace_headers

log = logging.getLogger(__name__)
LONGEST_HEALTH_PAUSE_S = 60.0
FIRST_PAUSE_S = 0.1
"""Before the same upstream is asked again; doubled each time."""
LARGEST_LINE = 16_000_000
AGAIN = (429, 502, 503)
MISSING = (404, 405, 501)
NOT_THERE = "upstream_lacks_it"
"""The code of an error that says: no such model, or no such route."""
UNREACHABLE = "upstream_unreachable"
"""The code of an error that says: it may answer later."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Deadlines in seconds, and the pool's thresholds. `silence_s` is the wait for the first token, and
    between two."""

    connect_s: float = 5.0
    silence_s: float = 120.0
    total_s: float = 600.0
    retries: int = 2
    health_interval_s: float = 5.0
    health_path: str = "/health"
    breaker_failures: int = 5
    breaker_cooldown_s: float = 5.0
    sticky_slack: int = 8
    """How many more requests the upstream of a conversation may have than the least busy one."""


class Failed(Exception):
    """One attempt failed. `again`: another may be made; `counts`: the upstream is to blame."""

    def __init__(self, error: AppError, *, again: bool = False, counts: bool = True) -> None:
        super().__init__(error.message)
        self.error, self.again, self.counts = error, again, counts


class Upstream:
    """One server of a pool. The counters are for telemetry."""

    def __init__(self, url: str, limits: PoolLimits) -> None:
        self.url = url
        self.breaker = Breaker(limits.breaker_failures, limits.breaker_cooldown_s)
        self.healthy = True
        self.in_flight = self.requests = self.failures = 0
        self.name_hash = hashlib.blake2b(url.encode(), digest_size=8).digest()


class UpstreamPool:
    """Upstreams of one kind. Call `start` before, and `close` after everything else.

    `key` is the secret for the Authorization header. Errors name neither it nor an upstream's address:
    those go to the log.
    """

    def __init__(self, urls: Sequence[str], option: str, limits: PoolLimits, key: str | None = None) -> None:
        self.option, self.limits = option, limits
        self.upstreams = [Upstream(url, limits) for url in urls]
        self.retries = 0
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._http: aiohttp.ClientSession | None = None
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the connection pool and begin to check the upstreams' health."""
        limits = self.limits
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(
                total=limits.total_s, sock_connect=limits.connect_s, sock_read=limits.silence_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            skip_auto_headers=("accept", "accept-encoding", "user-agent"),
        )
        self._watchers = [asyncio.create_task(self._watch(upstream)) for upstream in self.upstreams]

    async def close(self) -> None:
        """Calling it again does nothing."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        if self._http:
            http, self._http = self._http, None
            await http.close()

    def check_health(self) -> None:
        """Raises `EngineFailed` when no upstream can be asked."""
        if self._http is None or not any(u.healthy and u.breaker.allows for u in self.upstreams):
            raise EngineFailed(f"No upstream of {self.option} answers.")

    async def get(self, path: str) -> Any:
        """The JSON of the first upstream that answers. Raises `AppError`."""
        return await self._unary("GET", path, None, None)

    async def post(self, path: str, body: dict[str, Any], key: bytes | None = None) -> Any:
        """The JSON answer to a request that may be sent twice. Raises `AppError`."""
        return await self._unary("POST", path, encode(body), key)

    async def stream(
        self, path: str, body: dict[str, Any], key: bytes | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event. Closing the generator closes the connection, which aborts the
        generation upstream. Raises `AppError`."""
        content, tried = encode(body), list[Upstream]()
        while True:
            upstream = self.choose(key, tried)
            begun = False
            try:
                async with (
                    contextlib.aclosing(self._attempt(upstream, "POST", path, content)) as chunks,
                    contextlib.aclosing(events(chunks)) as found,
                ):
                    async for event in found:
                        begun = True
                        yield event
                return
            except Failed as failure:
                if begun:
                    raise failure.error from None
                await self._before_retry(failure, upstream, tried)

    def choose(self, key: bytes | None = None, tried: Sequence[Upstream] = ()) -> Upstream:
        """The upstream for a request. Raises `Overloaded` when there is none that may be asked now."""
        allowed = [upstream for upstream in self.upstreams if upstream.breaker.allows]
        if not allowed:
            raise Overloaded("No upstream answers at the moment. Try again.", code="upstream_unavailable")
        # An unhealthy one is still better than none, and so is one that just failed.
        for wanted in (
            [u for u in allowed if u.healthy and u not in tried],
            [u for u in allowed if u not in tried],
            allowed,
        ):
            if wanted:
                break
        if len(wanted) == 1:
            return wanted[0]
        least = min(wanted, key=lambda u: u.in_flight)
        if key is None:
            return least
        home = max(wanted, key=lambda u: hashlib.blake2b(key, digest_size=8, key=u.name_hash).digest())
        return home if home.in_flight <= least.in_flight + self.limits.sticky_slack else least

    async def _unary(self, method: str, path: str, content: bytes | None, key: bytes | None) -> Any:
        tried: list[Upstream] = []
        while True:
            upstream = self.choose(key, tried)
            try:
                async with contextlib.aclosing(self._attempt(upstream, method, path, content)) as chunks:
                    answer = b"".join([chunk async for chunk in chunks])
                return decode(answer)
            except Failed as failure:
                await self._before_retry(failure, upstream, tried)

    async def _before_retry(self, failure: Failed, upstream: Upstream, tried: list[Upstream]) -> None:
        """Return when the request may be sent again; raise its error when it may not."""
        if not failure.again or len(tried) >= self.limits.retries:
            raise failure.error from None
        again = upstream in tried or len(self.upstreams) == 1
        tried.append(upstream)
        self.retries += 1
        if again:
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (len(tried) - 1) * random.uniform(0.5, 1.5))

    async def _attempt(
        self, upstream: Upstream, method: str, path: str, content: bytes | None
    ) -> AsyncGenerator[bytes, None]:
        """The body of one answer, as it comes. Raises `Failed`."""
        if self._http is None:
            raise Failed(EngineFailed("The engine is stopped."), counts=False)
        upstream.requests += 1
        upstream.in_flight += 1
        upstream.breaker.begin()
        try:
            response = await self._http.request(
                method, upstream.url + path, data=content, headers=trace_headers(), allow_redirects=False
            )
            try:
                if response.status != 200:
                    raise self._refusal(response, await response.content.read(65536))
                async for chunk in response.content.iter_any():
                    yield chunk
            finally:
                if response.content.at_eof():
                    response.release()
                else:
                    response.close()
            upstream.breaker.succeed()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            log.warning("%s %s: %s", self.option, upstream.url, type(error).__name__)
            self._count_failure(upstream)
            silent = isinstance(error, TimeoutError)
            message = "The upstream did not answer in time." if silent else "The connection upstream failed."
            raise Failed(EngineFailed(message, code=UNREACHABLE), again=True) from None
        except Failed as failure:
            if failure.counts:
                self._count_failure(upstream)
            else:
                upstream.breaker.succeed()
            raise
        finally:
            upstream.in_flight -= 1
            upstream.breaker.leave()

    def _count_failure(self, upstream: Upstream) -> None:
        upstream.failures += 1
        upstream.breaker.fail()

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> Failed:
        """What a status other than 200 means. The upstream's own words are not passed on."""
        status = response.status
        if status in (400, 413, 422):
            return Failed(_bad_request(body), counts=False)
        log.warning("%s %s answered %d", self.option, response.url.origin(), status)
        if status == 429:
            busy = Overloaded("The upstream is full. Try again.")
            with contextlib.suppress(ValueError):
                busy.retry_after = min(3600, max(1, int(response.headers.get("retry-after", ""))))
            return Failed(busy, again=True, counts=False)
        if status in (401, 403):
            log.error("check PIT_UPSTREAM_API_KEY: an upstream of %s refuses it", self.option)
            return Failed(EngineFailed("The upstream refuses this server's key."))
        if status in MISSING:
            missing = EngineFailed("The upstream does not have what this server asks for.", code=NOT_THERE)
            return Failed(missing, again=len(self.upstreams) > 1, counts=False)
        message = f"The upstream failed with status {status}."
        if status in AGAIN:
            return Failed(EngineFailed(message, code=UNREACHABLE), again=True)
        return Failed(EngineFailed(message))

    async def _watch(self, upstream: Upstream) -> None:
        """Check one upstream's health until the pool is closed."""
        pause = 0.0
        while True:
            healthy = await self._answers(upstream)
            if healthy != upstream.healthy:
                log.warning("%s %s is %s", self.option, upstream.url, "back" if healthy else "not healthy")
            upstream.healthy = healthy
            interval = self.limits.health_interval_s
            pause = interval if healthy else min(max(interval, 2 * pause), LONGEST_HEALTH_PAUSE_S)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))

    async def _answers(self, upstream: Upstream) -> bool:
        """As its health path says; a server that has no such path lives if it says so."""
        assert self._http is not None
        timeout = aiohttp.ClientTimeout(total=self.limits.connect_s)
        try:
            async with self._http.get(upstream.url + self.limits.health_path, timeout=timeout) as response:
                return response.status < 500
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False


def _bad_request(body: bytes) -> AppError:
    """The upstream's 400 in words of our own: it may quote the prompt."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text, code = str(error.get("message", "")), str(error.get("code", ""))
    except (ValueError, AttributeError):
        text = code = ""
    if code == "context_length_exceeded" or "context length" in text or "max_model_len" in text:
        return ContextTooLong(
            "The conversation and its response do not fit into the model's context. Shorten the messages, or"
            " lower max_tokens.",
            param="messages",
        )
    return BadRequest(
        "The upstream engine cannot serve this request as it is: check the order of the roles, and the"
        " options.",
        code="upstream_refused",
    )


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def decode(answer: bytes) -> Any:
    """Raises `EngineFailed` for what is not JSON."""
    try:
        return json.loads(answer)
    except ValueError:
        raise EngineFailed("The upstream's answer is not JSON.") from None


async def events(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events, each one line (as OpenAI's are), from pieces of a body."""
    rest = b""
    async for chunk in chunks:
        lines = (rest + chunk if rest else chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > LARGEST_LINE:
            raise Failed(EngineFailed("The upstream sent a line without end."))
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
