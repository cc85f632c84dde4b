"""The real server, as `pit serve` runs it, over fakes: a process for tests to load, to signal and to kill.

    python -m tests.faults.server --token-ms 20 --tokens 30 '{"port": 9000, "shutdown_grace_s": 5}'

Every answer is the last word of the first user message, again and again: so a test sees whose answer it is.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.checkpoint import SamplingDefaults
from app.engines.base import Delta, FinishReason, Message, Prompt, Sampling, Tools
from app.improve.options import Models
from app.settings import Settings
from tests.app.fakes import FakeEngine, FakeScorer, factory_of, fake_models, words_of
from tests.load.processes import Server, server
from tests.ports import free_port

WORD_FOLLOWS = -1


class Echo(FakeEngine):
    """Says the last word of the user's first message, `max_tokens` times, `longest` at most. The word is in
    the prompt's ids, so that nothing has to be remembered: what is measured is the server's memory, not the
    fake's."""

    longest: int = 1_000_000

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        text = next((str(m["content"]) for m in messages if m["role"] == "user"), "")
        word = (text.split() or ["word"])[-1]
        tokens = sum(2 + words_of(str(m["content"])) for m in messages)
        return Prompt([WORD_FOLLOWS, *map(ord, word)], tokens)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        assert isinstance(prompt.content, list)
        known = prompt.content[:1] == [WORD_FOLLOWS]
        token = ("".join(map(chr, prompt.content[1:])) if known else "word") + " "
        self.running += 1
        try:
            last = min(self.longest, sampling.max_tokens)
            for number in range(1, last + 1):
                await asyncio.sleep(self.delay_s)
                ends: FinishReason | None = "length" if number == last else None
                yield Delta(token, 1, ends, logprobs=self._logprobs(token, sampling.logprobs))
        finally:
            self.running -= 1


def models(token_ms: float, tokens: int, longest: int) -> Models:
    """As the options say."""
    policy, improver = (Echo(context_length=2_000_000, delay_s=token_ms / 1000) for _ in range(2))
    for engine in (policy, improver):
        engine.defaults, engine.longest = SamplingDefaults(0.7, max_tokens=tokens), longest
    return fake_models(policy, improver, FakeScorer(context_length=10_000_000))


@contextmanager
def fake_server(
    directory: Path, *, token_ms: float = 20, tokens: int = 20, longest: int = 1_000_000, **settings: Any
) -> Iterator[Server]:
    """The server in a process of its own, ready."""
    port = settings.setdefault("port", free_port())
    settings.setdefault("database", f"sqlite:///{directory}/pit-{port}.db")
    options = ["--token-ms", str(token_ms), "--tokens", str(tokens), "--longest", str(longest)]
    command = [sys.executable, "-m", "tests.faults.server", *options, json.dumps(settings)]
    log = directory / f"server-{port}.log"
    with server("server", command, port=port, log=log, ready="/health/ready") as found:
        yield found


def main() -> int:
    from rich.console import Console

    from app.logs import configure_logging
    from app.server import run

    parser = argparse.ArgumentParser()
    parser.add_argument("--token-ms", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--longest", type=int, default=1_000_000)
    parser.add_argument("settings", type=json.loads)
    given = parser.parse_args()
    settings = Settings(**{"access_log": False} | given.settings)
    configure_logging(settings)
    return run(settings, factory_of(models(given.token_ms, given.tokens, given.longest)), Console())


if __name__ == "__main__":
    sys.exit(main())
