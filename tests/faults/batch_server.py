"""A server over fakes that keeps a journal of every generation, to be killed:
python -m tests.faults.batch_server PORT DATABASE JOURNAL."""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import uvicorn

from app.engines.base import Delta, Prompt, Sampling
from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine, factory_of, fake_models

LEASE_S = 1.0


@dataclass
class JournalEngine(FakeEngine):
    """Writes down, before it begins, which process generates what: the seed says the item's iteration."""

    journal: int = -1

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        if self.journal >= 0:
            os.write(self.journal, f"{os.getpid()} {sampling.seed}\n".encode())
        async with aclosing(super().generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta


def models(journal: int = -1, delay_s: float = 0.0) -> Models:
    """The same texts for the same seeds, in every process."""
    return fake_models(
        policy=JournalEngine(journal=journal, delay_s=delay_s),
        improver=JournalEngine(journal=journal, delay_s=delay_s),
    )


def main() -> None:
    port, database, path = sys.argv[1:]
    journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    settings = Settings(database=database, batch_lease_s=LEASE_S, batch_concurrency=8, store_timeout_s=10)
    app = create_app(settings, factory_of(models(journal, delay_s=0.002)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")


if __name__ == "__main__":
    main()
