"""Runs of `/v1/improve`: those that run now, in memory, and those that have ended, in the store.

A run has a task of its own. Its caller and everybody else who follows it read the same list of events, so
that all see the same bytes; when the caller goes away, the run is cancelled.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from app.api.render import dumps, event_json, frame, improvement, shown
from app.errors import AppError, BadRequest, NotFound
from app.improve.events import Event, RunCompleted, RunFailed
from app.improve.loop import ImprovementRun
from app.schemas import ImproveRequest, RunSummary
from app.security import caller
from app.settings import Settings
from app.store.records import RunRecord, excerpt, last_win
from app.store.store import Store
from app.telemetry import Telemetry

RUN_ID = re.compile(r"imp_[0-9a-f]{32}")
MAX_LEAD = 256
"""Events that a run may be ahead of its caller's reading: a slow reader slows its run."""
CANCEL_S = 5.0
"""How long to wait for a cancelled run to end, which takes milliseconds unless an engine hangs."""
PAGE = 20
"""Rows of events that are read at a time."""
POLL_S = 0.5
"""How often to look for new events of a run that another server runs."""
NOTHING_KEPT = "This server keeps no runs (database: none): start it with --database to have them."


class LiveRun:
    """One run from its start to its end. Call `answer` or `stream` once, for the caller."""

    def __init__(self, run: ImprovementRun, body: ImproveRequest, runs: "Runs", store: Store | None) -> None:
        self.run, self.runs, self.store, self.metadata = run, runs, store, body.metadata
        request = request_json(body, run.seed)
        self.record = RunRecord(
            id=run.id,
            created=time.time(),
            request=request,
            owner=caller().owner,
            excerpt=excerpt(body.messages[-1].text()),
        )
        self.error: AppError | None = None
        self.ended = False
        self._shown = self._read = 0
        self._paced = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def answer(self) -> str:
        """Run to the end: the response as JSON text. Raises the run's error. The run is cancelled when this
        is."""
        task = self._begin()
        try:
            await asyncio.wait({task})
        finally:
            await self._leave()
        if self.error:
            raise self.error
        assert self.record.result is not None
        return self.record.result

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Run to the end, as Server-Sent Events. The run is cancelled when this is closed before."""
        self._begin()
        self._paced = True
        try:
            async with aclosing(self.follow(0)) as frames:
                async for frame in frames:
                    yield frame
                    self._read += 1
                    self._room.set()
        finally:
            await self._leave()

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """The events with greater numbers than `after`, those to come too."""
        while True:
            while after < self._shown:
                after += 1
                yield frame(self.record.events[after - 1], after)
            if self.ended:
                return
            await self._news.wait()

    def stop(self) -> None:
        """Have the run end with what it has."""
        self.run.cancel()
        self._paced = False
        self._room.set()

    async def cancel(self) -> None:
        """End the run with what it has, and wait for its end."""
        self.stop()
        if self._task:
            await asyncio.wait({self._task}, timeout=CANCEL_S)

    async def _leave(self) -> None:
        """The caller reads no more."""
        if not self.ended:
            await self.cancel()

    def _begin(self) -> "asyncio.Task[None]":
        if self.store and not self.store.writer.add(self.record):
            self.store = None
        self.runs.live[self.record.id] = self
        self._task = asyncio.create_task(self._drive())
        return self._task

    async def _drive(self) -> None:
        try:
            async with aclosing(self.runs.telemetry.observe(self.run)) as events:
                async for event in events:
                    if isinstance(event, RunCompleted | RunFailed):
                        await self._end(event)
                        return
                    self._say(event)
                    while self._paced and self._shown - self._read > MAX_LEAD:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:
            await self._end(RunFailed(shown(error)))
        finally:
            self.ended = True
            self._tell()
            self.runs.live.pop(self.record.id, None)

    def _say(self, event: Event) -> None:
        self.record.events.append(event_json(event))
        self._shown += 1
        self._tell()

    def _tell(self) -> None:
        """Wake everybody who follows."""
        self._news.set()
        self._news = asyncio.Event()

    async def _end(self, event: RunCompleted | RunFailed) -> None:
        """Complete the record and have it stored; only then is the end shown."""
        self._finish(event, stored=self.store is not None)
        self.record.finished = time.time()
        if self.store and not await self.store.writer.finish(self.record):
            self.record.events.pop()
            self._finish(event, stored=False)
        self._shown += 1

    def _finish(self, event: RunCompleted | RunFailed, *, stored: bool) -> None:
        record = self.record
        if isinstance(event, RunFailed):
            self.error, record.state = event.error, "failed"
            body = event.error.body()
            record.error = dumps(body["error"])
            record.events.append(dumps({"type": "run.failed"} | body))
            return
        result = event.result
        record.state = "cancelled" if result.stop_reason == "cancelled" else "completed"
        record.stop_reason, record.iterations = result.stop_reason, len(result.iterations)
        record.improved = result.improved
        shown = improvement(result, self.metadata, stored=stored).model_dump()
        record.win_probability = last_win(shown["iterations"])
        record.result = dumps(shown)
        record.events.append(f'{{"type":"run.completed","improvement":{record.result}}}')


class Runs:
    """The runs of a server. `live` holds those that run; `store` is None where nothing is kept.

    Whoever asks sees its own runs, an admin all; of others it is as if they did not exist.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        """Raises `StoreError` for a database that cannot be used."""
        self.settings, self.telemetry = settings, telemetry
        self.live: dict[str, LiveRun] = {}
        keeps = settings.database != "none"
        self.store = Store(settings, telemetry, self._cancel_here) if keeps else None

    def take(self, run: ImprovementRun, body: ImproveRequest) -> LiveRun:
        """A run for this request, not begun. Raises `BadRequest` where the request wants it stored and
        nothing is kept here."""
        if body.store and self.store is None:
            raise BadRequest(
                f"{NOTHING_KEPT} Or leave store out.",
                param="store",
            )
        wanted = self.settings.store if body.store is None else body.store
        return LiveRun(run, body, self, self.store if wanted else None)

    async def cancel_all(self) -> None:
        """End every run with its best so far, and have it stored: its caller gets it as the answer."""
        await asyncio.gather(*(live.cancel() for live in list(self.live.values())))

    async def stop(self) -> None:
        """Cancel what runs, and write what is left."""
        await self.cancel_all()
        if self.store:
            await self.store.close()

    async def get(self, run_id: str) -> RunRecord:
        """A run with its request and, once it has ended, its result or error. Raises `NotFound`."""
        if live := self._live(run_id):
            return live.record
        found = await self.store.run(run_id) if self.store and RUN_ID.fullmatch(run_id) else None
        if found is None or not caller().sees(found.owner):
            raise self.no_run()
        return found

    def no_run(self, param: str = "id") -> NotFound:
        """The error for a run that is not there, or not the caller's."""
        why = "It may have been sent with store: false, or be past the retention."
        return NotFound(
            f"There is no run of this id. {why if self.store else NOTHING_KEPT}",
            param=param,
            code="run_not_found",
        )

    def _live(self, run_id: str) -> LiveRun | None:
        live = self.live.get(run_id)
        return live if live and caller().sees(live.record.owner) else None

    async def page(self, limit: int, after: str | None) -> list[RunRecord]:
        """The latest stored runs, or those before `after`. Raises `NotFound` where nothing is kept,
        `BadRequest` for an `after` that is not stored."""
        if self.store is None:
            raise NotFound(f"There are no runs. {NOTHING_KEPT}", code="run_not_found")
        found = await self.store.page(limit, after, caller())
        if found is None:
            raise BadRequest("after is not the id of a stored run.", param="after")
        return found

    async def events(self, run_id: str, after: int) -> AsyncGenerator[bytes, None] | None:
        """The events of a run after this number, followed to its end; None: it has ended, and they were
        all. Raises `NotFound`."""
        if live := self._live(run_id):
            return live.follow(after)
        record = await self.get(run_id)
        assert self.store is not None
        if record.state != "running" and not await self.store.events(run_id, after, 1):
            return None
        return self._stored_events(run_id, after)

    async def _stored_events(self, run_id: str, after: int) -> AsyncGenerator[bytes, None]:
        assert self.store is not None
        while True:
            # First the state, then the events: what the end has written is not missed.
            record = await self.store.run(run_id)
            page = await self.store.events(run_id, after, PAGE)
            for after, data in page:
                yield frame(data, after)
            if len(page) >= PAGE:
                continue
            if record is None or record.state != "running":
                return
            await asyncio.sleep(POLL_S)

    async def cancel(self, run_id: str) -> RunRecord:
        """Cancel a run and give it as it is then; one that has ended stays as it is. Raises `NotFound`."""
        if live := self._live(run_id):
            await live.cancel()
            return live.record
        record, deadline = await self.get(run_id), time.monotonic() + CANCEL_S
        if record.state == "running" and self.store:
            await self.store.request_cancel(run_id)
        while record.state == "running" and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            record = await self.get(run_id)
        return record

    def _cancel_here(self, run_id: str) -> None:
        if live := self.live.get(run_id):
            live.stop()


def request_json(body: ImproveRequest, seed: int) -> str:
    """The request that gives this run again."""
    seeded = body.model_copy(update={"seed": seed})
    return seeded.model_dump_json(exclude={"stream"}, exclude_none=True)


def run_json(record: RunRecord) -> str:
    """`GET /v1/improve/{id}`: the run as JSON text; its parts go in as they are stored."""
    ended = record.finished is not None and record.state != "running"
    head: dict[str, Any] = {
        "id": record.id,
        "object": "improvement.run",
        "created": int(record.created),
        "finished": int(record.finished) if ended and record.finished else None,
        "state": record.state,
    }
    result, error = (record.result or "null", record.error or "null") if ended else ("null", "null")
    return f'{dumps(head)[:-1]},"request":{record.request},"result":{result},"error":{error}}}'


def summary(record: RunRecord) -> RunSummary:
    """A run in a list."""
    return RunSummary(
        id=record.id,
        created=int(record.created),
        finished=None if record.finished is None else int(record.finished),
        state=record.state,
        stop_reason=record.stop_reason,
        iterations=record.iterations,
        excerpt=record.excerpt or "",
        improved=record.improved,
        win_probability=record.win_probability,
    )
