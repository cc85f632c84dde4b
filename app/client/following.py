"""One run, followed over as many connections as it takes. No I/O: the clients ask what to send next, and say
what came."""

import uuid
from collections.abc import Iterator

import httpx

from app.client import calls
from app.client.calls import Call
from app.client.events import EVENT, KNOWN, Event, Frames, RunCompleted, RunCreated
from app.client.failures import NoAnswer, failure, raise_for
from app.errors import AppError, NotFound

TRIES = 8
"""Connections in a row that bring no event."""
LONGEST_PAUSE_S = 10.0
COME_AGAIN = frozenset((409, 429, 502, 503, 504))
"""What may be said to who connects again while the server restarts, or another one answers."""


class Following:
    """The state of one stream.

    A run is cancelled when the client that sent it goes away, unless it came with an `Idempotency-Key`
    (docs/stored-runs.md). So it is sent with one, and what breaks goes on at `Last-Event-ID`; a client that
    leaves on purpose says so (`leaving`). Where nothing is kept there is no key, and no second connection.
    """

    def __init__(self, first: Call, *, run: str | None = None, after: int = 0) -> None:
        """Of a new run `first` is its request; of one that is there, that for its events."""
        stored = (first.body or {}).get("store") is not False
        self.key = uuid.uuid4().hex if run is None and stored else None
        self.first, self.run, self.last = first, run, after
        self.ended = False
        self._resumable = self.key is not None or run is not None
        self._reached = False
        self._tries = 0
        self._frames = Frames()

    def next_call(self) -> Call:
        """The request to send."""
        self._frames = Frames()
        if self.run and self._resumable:
            return calls.events(self.run, self.last)
        return self.first.with_key(self.key)

    def answered(self, response: httpx.Response) -> bool:
        """Whether its events are to be read now; otherwise `next_call` says what to send. A refusal's body
        must have been read. Raises the server's error."""
        if response.status_code == 204:
            raise NoAnswer(
                f"run {self.run} has ended without a result: the server that ran it was stopped.",
                code="run_lost",
            )
        if response.is_success:
            self._reached = True
            return True
        try:
            raise_for(response)
        except AppError as error:
            if error.param == "idempotency-key" and self.key and error.status == 400:
                self.key, self._resumable = None, False  # nothing is kept there
                return False
            if isinstance(error, NotFound) and self.key and self.run:
                self.run = None  # it is not stored, but its answer is kept for its key
                return False
            raise
        raise AssertionError("a response is a success or an error")

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are whole now. Raises the error of a run that failed."""
        for frame in self._frames.feed(chunk):
            if frame.name == "run.failed" or not frame.name:
                if frame.data != "[DONE]":
                    self.ended = True
                    raise failure(frame.data)
                continue
            if frame.number <= self.last:
                continue
            self.last, self._tries = frame.number, 0
            if frame.name not in KNOWN:
                continue  # of a newer server
            event = EVENT.validate_json(frame.data)
            if isinstance(event, RunCreated):
                self.run = event.id
            self.ended = isinstance(event, RunCompleted)
            yield event

    def broke(self, error: AppError) -> float:
        """Seconds to wait before the next connection. Raises `error` where there is to be none."""
        broken = isinstance(error, NoAnswer) and error.code in ("no_answer", "no_server")
        self._reached = self._reached or (broken and error.code == "no_answer")
        again = broken or error.status in COME_AGAIN
        if not (again and self._resumable and self._reached) or self._tries >= TRIES:
            raise error
        self._tries += 1
        return min(LONGEST_PAUSE_S, error.retry_after or 0.1 * 2**self._tries)

    def leaving(self) -> Call | None:
        """What to send when nobody reads any more: a run of our own must not go on for nobody."""
        return calls.cancel(self.run) if self.run and self.key and not self.ended else None

