"""The worker: one task of a server that takes items of batches from the queue, some at a time, beside the
requests that people wait for.

Several servers share a queue. What one of them has taken and not finished when it dies is taken by another
when the lease has ended; a run goes on behind its last finished iteration.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.api.render import dumps, shown
from app.batch.ending import write_output
from app.batch.items import answer
from app.batch.lines import result_line
from app.batch.reading import read_input
from app.errors import AppError, EngineFailed, Overloaded
from app.observe import RequestState, current
from app.runtime import Runtime
from app.security import SCOPES, Identity
from app.settings import Settings
from app.store.batch_queue import BatchQueue, Item, NotOurs
from app.store.batches import BatchRecord, BatchStore
from app.store.database import reason
from app.store.files import FileStore
from app.store.store import Store
from app.store.writer import OUTAGES
from app.telemetry import Telemetry, log_failure

log = logging.getLogger(__name__)
T = TypeVar("T")
POLL_S = 1.0
"""How often to look for what other servers have put into the queue; five times as rarely where the database
is a file, which one server has alone as a rule."""
UPKEEP_S = 10.0
RETRY_S = 0.5
MAX_ATTEMPTS = 6
"""How often an item is tried that does not get further: engines that fail, servers that die of it."""
LONGEST_PAUSE_S = 60
ABANDONED = AppError(
    f"This request was tried {MAX_ATTEMPTS} times, and each time the server stopped.", code="server_stopped"
)


class BatchWorker:
    """`start` it when the models are up. `wake` it when there is something new."""

    def __init__(self, settings: Settings, store: Store, runtime: Runtime, telemetry: Telemetry) -> None:
        self.settings, self.store, self.runtime, self.telemetry = settings, store, runtime, telemetry
        self.server, database = store.writer.server, store.database
        self.queue, self.batches, self.files = BatchQueue(database), BatchStore(database), FileStore(database)
        self._running: dict[asyncio.Task[None], Item] = {}
        self._tending: asyncio.Task[None] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._turns = 0

    def start(self) -> None:
        never, beat_s = asyncio.Event(), self.settings.batch_lease_s / 4
        poll_s = 5 * POLL_S if self.store.database.is_sqlite else POLL_S
        self.wake()
        self._loops = [
            asyncio.create_task(self._repeat("taking batch items", self._turn, poll_s, self._wake)),
            asyncio.create_task(self._repeat("keeping batch items", self._keep, beat_s, never)),
            asyncio.create_task(self._repeat("upkeep of batches", self._upkeep, UPKEEP_S, never)),
        ]

    async def stop(self) -> None:
        """Give back what is not finished, for other servers to go on with."""
        for tasks in (self._loops, [*self._running, *([self._tending] if self._tending else [])]):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look into the queue now."""
        self._wake.set()

    def drop(self, batch_id: str) -> None:
        """Stop to work on this batch, which is cancelled."""
        for task, item in self._running.items():
            if item.batch_id == batch_id:
                task.cancel()
        self.wake()

    async def _repeat(
        self, what: str, turn: Callable[[], Awaitable[None]], pause_s: float, wake: asyncio.Event
    ) -> None:
        """A turn every `pause_s` seconds, and when it is woken."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await wake.wait()
            wake.clear()
            if self.store.problem:
                continue
            try:
                await turn()
            except OUTAGES as error:
                log.info("%s: %s", what, reason(error))
            except Exception as error:
                log_failure(what, error)

    async def _turn(self) -> None:
        """Take what there is room for: from each batch in turn, so that none waits for the end of another."""
        if self._tending is None or self._tending.done():
            await self._take_batch()
        draining = self.runtime.stopping or self.runtime.lifecycle.draining
        ready = self.runtime.served is not None and not draining
        room = self.settings.batch_concurrency - len(self._running) if ready else 0
        active = await self.queue.active() if room > 0 else []
        self._turns += 1
        some = False
        for place in range(len(active)):
            batch_id = active[(place + self._turns) % len(active)]
            share = room // (len(active) - place) or min(1, room)
            if not share:
                return
            taken = await self.queue.take_items(batch_id, share, self.server, self.settings.batch_lease_s)
            for item in taken:
                task = asyncio.create_task(self._work(item))
                self._running[task] = item
                task.add_done_callback(self._ended)
            room, some = room - len(taken), some or bool(taken)
        if some and room > 0:
            self.wake()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log_failure("a batch item", error)  # it is taken again when its lease has ended
        self.wake()

    async def _work(self, item: Item) -> None:
        """One item, from its request to its written result."""
        state = RequestState(f"req_{uuid.uuid4().hex}")
        state.identity = Identity(item.owner, SCOPES)
        current.set(state)
        self.telemetry.batch_running.inc()
        attempts = item.attempts

        async def save(progress: str) -> None:
            nonlocal attempts
            if not await self._insist(lambda: self.queue.save(item, progress)):
                raise NotOurs
            attempts = 0

        try:
            if attempts > MAX_ATTEMPTS:
                raise ABANDONED
            body, status = await answer(item, self.runtime, self.telemetry, save), 200
        except NotOurs:
            self.telemetry.batch_items.labels("lost").inc()
        except asyncio.CancelledError:
            await self.queue.release(item, 0, max(0, attempts - 1))
            raise
        except Exception as failure:
            error = shown(failure)
            if isinstance(error, Overloaded | EngineFailed) and attempts < MAX_ATTEMPTS:
                await self._try_later(item, attempts)
            else:
                await self._write(item, state.request_id, error.status, dumps(error.body()))
        else:
            await self._write(item, state.request_id, status, body)
        finally:
            self.telemetry.batch_running.dec()

    async def _try_later(self, item: Item, attempts: int) -> None:
        pause_s = min(2 ** max(1, attempts), LONGEST_PAUSE_S)
        await self._insist(lambda: self.queue.release(item, pause_s, attempts))
        self.telemetry.batch_items.labels("retried").inc()

    async def _write(self, item: Item, request_id: str, status: int, body: str) -> None:
        line, succeeded = result_line(item.custom_id, request_id, status, body), status == 200
        line = line.encode("utf-8", "replace").decode()
        written = await self._insist(lambda: self.queue.finish(item, succeeded, line))
        outcome = "lost" if not written else "completed" if succeeded else "failed"
        self.telemetry.batch_items.labels(outcome).inc()

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write until the database takes it: work that is done is not lost for an outage. Whether it is still
        ours, the database says when it is back."""
        while True:
            try:
                return await write()
            except OUTAGES as error:
                log.info("writing of a batch item: %s", reason(error))
                await asyncio.sleep(RETRY_S)

    async def _keep(self) -> None:
        """Say that this server lives; stop what is not ours any more, or whose batch has ended."""
        running = dict(self._running)
        if not running:
            return
        kept = set(await self.queue.extend(list(running.values()), self.settings.batch_lease_s))
        for task, item in running.items():
            if item not in kept:
                task.cancel()

    async def _take_batch(self) -> None:
        """Read a new batch's input, or end one whose items are done."""
        found = await self.queue.take_batch(self.server, self.settings.batch_lease_s)
        if found:
            self._tending = asyncio.create_task(self._tend(*found))
            self._tending.add_done_callback(lambda _: self.wake())

    async def _tend(self, batch: BatchRecord, worker: str) -> None:
        try:
            if batch.status == "validating":
                read = await read_input(batch, worker, self.files, self.queue, self.settings)
                status = None if read else "failed"
            else:
                status = await write_output(batch, worker, self.files, self.queue, self.settings)
        except (NotOurs, *OUTAGES) as error:
            log.info("batch %s: %s", batch.id, type(error).__name__)
        except asyncio.CancelledError:
            await self.queue.release_batch(batch.id, worker)
            raise
        except Exception as error:
            log_failure(f"batch {batch.id}", error)
        else:
            if status:
                self.telemetry.batches.labels(status).inc()
                while await self.batches.sweep():
                    pass

    async def _upkeep(self) -> None:
        max_age_s = 86400 * self.settings.file_retention_days or None
        await self.batches.expire()
        await self.batches.prune(max_age_s)
        await self.batches.sweep()
        await self.files.prune()
        self.telemetry.batch_waiting.set(await self.batches.waiting())
