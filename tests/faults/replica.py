"""One replica of a server of fakes that notes what its limits let in: python -m tests.faults.replica PORT LOG

Settings come from PIT_*; REPLICA_KEYS holds the limits of the keys that x-test-key may name, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

import uvicorn

from app.limits.asks import Ask, Grant, Refusal
from app.limits.limits import Entry, Limits, Work
from app.main import create_app
from app.security import Identity, KeyLimits, caller
from app.server import KEEP_ALIVE_S
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models
from tests.app.identified import identify

TRIED: dict[str, float] = {}
"""When the admission of a lease was sent."""


class Noted(Entry):
    """Writes a line for each request that was let in: whose, its tokens, and three times of the machine's
    monotonic clock, which all processes share: admitted between the first two, out at the third."""

    def __init__(self, limits: Limits, work: Work, identity: Identity, log: TextIO) -> None:
        super().__init__(limits, work, identity)
        self.log = log

    async def __aenter__(self) -> None:
        await super().__aenter__()
        self.admitted = time.monotonic()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.grant
        tried = TRIED.pop(self.grant.lease)
        line = [self.identity.owner, self.work.tokens_used, tried, self.admitted, time.monotonic()]
        print(json.dumps(line), file=self.log, flush=True)
        await super().__aexit__(kind, error, trace)


def main(port: int, log: Path) -> None:
    keys = {name: KeyLimits(**given) for name, given in json.loads(os.environ["REPLICA_KEYS"]).items()}
    engines = [FakeEngine(model_id=name, delay_s=0.002) for name in ("policy", "improver")]
    app = identify(create_app(Settings(), factory_of(fake_models(engines[0], engines[1]))), keys)
    limits: Limits = app.state.limits
    file = log.open("a", encoding="utf-8")

    def entry(work: Work, identity: Identity | None = None) -> Entry:
        return Noted(limits, work, identity or caller(), file)

    admit = limits.limiter.admit

    async def noted(ask: Ask) -> Grant | Refusal:
        tried = time.monotonic()
        reply = await admit(ask)
        if isinstance(reply, Grant):
            TRIED[reply.lease] = tried
        return reply

    limits.limiter.admit = noted  # type: ignore[method-assign]
    limits.entry = entry  # type: ignore[method-assign]
    uvicorn.run(app, port=port, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
