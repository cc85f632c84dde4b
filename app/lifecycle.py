"""What a server works on, and how it stops: nothing new is taken, what runs may finish, the rest ends with
what it has or is cancelled."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import Overloaded

OPERATIONS = ("/health", "/metrics", "/version")
"""Beginnings of the paths that ask about the server: answered also while it drains, or is full."""
TICK_S = 0.02


class Lifecycle:
    """Of one server: which requests are in flight, and whether new ones are taken.

    `draining` is set by the first signal to stop, `forced` by the second, `ending` when what is left of the
    work is cancelled.
    """

    def __init__(self) -> None:
        self.draining = self.forced = self.ending = False
        self._work: set[asyncio.Task[None]] = set()
        self._cuts: set[Callable[[], None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests that were taken and are not answered to their end; questions about the server do not
        count."""
        return len(self._work)

    @contextmanager
    def request(self, path: str) -> Iterator[bool]:
        """Around a request: True where it is not to be answered, as the server drains. What was taken before
        is answered."""
        if path.startswith(OPERATIONS):
            yield False
            return
        if self.draining:
            yield True
            return
        task = asyncio.current_task()
        assert task is not None
        self._work.add(task)
        try:
            yield False
        finally:
            self._work.discard(task)

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """Around work that can end early with what it has: `cut` has it do so, when the grace is over."""
        self._cuts.add(cut)
        try:
            yield
        finally:
            self._cuts.discard(cut)

    def cut(self) -> None:
        """Have all work end that can end with what it has."""
        for cut in list(self._cuts):
            cut()

    async def finished(self, within_s: float, *, unless_forced: bool = True) -> bool:
        """Wait until nothing is in flight; False when that takes too long, or a second signal came."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self._work:
            if (unless_forced and self.forced) or asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(TICK_S)
        return True

    def end(self) -> None:
        """Cancel what is left. A request that is cancelled so may still say `stopping()` to its client."""
        self.ending = True
        for task in self._work:
            task.cancel()

    def was_ended(self) -> bool:
        """For a request that is being cancelled: whether `end` did it. Then it goes on, to say so."""
        task = asyncio.current_task()
        if not self.ending or task is None:
            return False
        task.uncancel()
        return True


def stopping() -> Overloaded:
    """What a request is told that is not taken any more, or cannot be finished."""
    return Overloaded("The server is stopping. Send the request to another one.", code="not_ready")
