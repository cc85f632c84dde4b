"""An engine under supervision: one that hangs or dies is noticed, said, and replaced.

- Watchdog: the engine owes tokens (a request waits for it) and has given none for `watchdog_s`. It counts as
  hung: its requests fail, new ones are refused, readiness says so.
- Probe: an engine that nobody asks could hang unseen. After `probe_s` without a request it generates one
  token, under the same watchdog. A hung engine is probed on, and one that answers again is up again.
- Restart: an engine that has ended, or that has hung for `restart_hung_s`, is closed and built anew, with a
  growing delay between attempts that fail.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.engines.base import Delta, Engine, Message, Prompt, Sampling, Tools
from app.errors import AppError, CheckpointError, EngineFailed, Overloaded

log = logging.getLogger(__name__)
T = TypeVar("T")
PROBE: list[Message] = [{"role": "user", "content": "Hello"}]
LONGEST_DELAY_S = 60.0
"""Between two attempts to start an engine; one that has lived for longer begins with no delay again."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A hang is noticed within `probe_s + watchdog_s + tick_s`, a death within `tick_s`."""

    watchdog_s: float = 20.0
    probe_s: float = 5.0
    restart_hung_s: float = 60.0
    first_delay_s: float = 1.0
    tick_s: float = 0.5


class SupervisedEngine:
    """See `Engine` for what the methods promise. While the engine is down they raise `Overloaded` instead."""

    def __init__(self, engine: Engine, build: Callable[[], Awaitable[Engine]], timing: Timing) -> None:
        """Supervise `engine` until `close`; `build` makes a new one like it. Needs a running event loop."""
        self.engine, self._build, self._timing = engine, build, timing
        self.context_length, self.defaults = engine.context_length, engine.defaults
        self.model_id = engine.model_id
        self.problem: str | None = None
        """Why the engine cannot work now, for people to read; None when it can."""
        self.restarts = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Timeout] = set()
        self._progress = self._up_since = self._down_since = self._loop.time()
        self._delay = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._watcher = asyncio.create_task(self._watch())

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        return await self._working().prepare(messages, count=count, tools=tools)

    async def prepare_text(self, text: str | Sequence[int]) -> Prompt:
        return await self._working().prepare_text(text)

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        return await self._working().token_ids(messages)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        async with contextlib.aclosing(self._stream(self._working(), prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        return await self._answer(self._working().logprobs(prompt_ids, completion_ids))

    async def check_health(self) -> None:
        if self.problem:
            raise EngineFailed(self.problem)
        await self.engine.check_health()

    async def close(self) -> None:
        tasks = [task for task in (self._watcher, self._probe) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.close()

    def _working(self) -> Engine:
        if self.problem:
            raise Overloaded(f"{self.model_id}: {self.problem}. Try again.", code="engine_unavailable")
        return self.engine

    async def _stream(
        self, engine: Engine, prompt: Prompt, sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """The deltas of a generation that the watchdog can end."""
        async with contextlib.aclosing(engine.generate(prompt, sampling)) as deltas:
            while (delta := await self._answer(anext(deltas, None))) is not None:
                yield delta

    async def _answer(self, awaited: Awaitable[T]) -> T:
        """What the engine owes. Raises `EngineFailed` when the watchdog gives it up."""
        if not self._waiting:
            self._progress = self._loop.time()
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                self._waiting.add(timeout)
                answer = await awaited
        except TimeoutError:
            if not timeout.expired():
                raise
            raise EngineFailed(
                "The engine stopped answering. Try again when /health/ready answers 200."
            ) from None
        finally:
            self._waiting.discard(timeout)
        self._progress = self._loop.time()
        return answer

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timing.tick_s)
            try:
                await self.engine.check_health()
            except AppError:
                self._give_up("the engine has ended and is started again")
                await self._restart()
                continue
            now, timing = self._loop.time(), self._timing
            if self._waiting and now - self._progress > timing.watchdog_s:
                self._give_up(f"the engine has given no token for {timing.watchdog_s:g} s")
            if self.problem and now - self._down_since > timing.restart_hung_s:
                await self._restart()
            elif not self._waiting and (self.problem or now - self._progress >= timing.probe_s):
                self._start_probe()

    def _give_up(self, problem: str) -> None:
        """The engine does not work: let every request that waits for it fail."""
        if self.problem is None:
            log.error("%s: %s", self.model_id, problem)
            self._down_since = self._loop.time()
        self.problem = problem
        for timeout in self._waiting:
            with contextlib.suppress(RuntimeError):  # it has been told, or has just ended
                timeout.reschedule(self._loop.time())

    def _start_probe(self) -> None:
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._generate_one_token(self.engine))

    async def _generate_one_token(self, engine: Engine) -> None:
        try:
            prompt = await engine.prepare(PROBE)
            sampling = Sampling(max_tokens=1, temperature=0.0)
            async with contextlib.aclosing(self._stream(engine, prompt, sampling)) as deltas:
                tokens = sum([delta.tokens async for delta in deltas])
        except AppError:
            return  # the watchdog has ended it, or the next look finds the engine dead
        if tokens and engine is self.engine and self.problem:
            log.warning("%s: the engine answers again", self.model_id)
            self.problem = None

    async def _restart(self) -> None:
        """Replace the engine, however often it takes."""
        if self._loop.time() - self._up_since > LONGEST_DELAY_S:
            self._delay = 0.0
        while True:
            await asyncio.sleep(self._delay)
            self._delay = min(max(2 * self._delay, self._timing.first_delay_s), LONGEST_DELAY_S)
            try:
                await self._stop(self.engine.close())
                self.engine = await self._build()
            except (AppError, CheckpointError) as error:
                reason = str(error)
            except Exception as error:
                log.exception("%s: restart failed", self.model_id)
                reason = type(error).__name__
            else:
                break
            self.problem = (
                f"the engine could not be started again, next attempt in {self._delay:g} s: {reason}"
            )
            log.error("%s: %s", self.model_id, self.problem)
        self.restarts += 1
        self._up_since = self._progress = self._loop.time()
        self.problem = None
        log.warning("%s: the engine was started again", self.model_id)

    async def _stop(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close an engine that is of no use; what goes wrong with that is only logged."""
        try:
            await closing
        except Exception as error:
            log.warning("%s: closing the old engine failed: %s", self.model_id, type(error).__name__)
