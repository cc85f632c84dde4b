"""A run whose texts are known: what the improver writes in turn, and how good each is."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle

from playwright.async_api import Page, expect

from app.checkpoint import SamplingDefaults
from app.engines.base import Delta, Message, Prompt, Sampling
from app.improve.options import Models
from tests.app.fakes import FakeEngine, FakeScorer, fake_models

PROMPT = "What about the price and color and origin?"
DRAFT = "It has price 24 euros and my cat sleeps all morning."
BETTER = "It has price 24 euros and color red and my dog sleeps all morning."
BEST = "It has price 24 euros and color red and origin Oslo and my dog sleeps all day."
WORSE = "It has price 24 euros and color red. Buy now!"
VALUES = {DRAFT: 0.0, BETTER: 0.9, BEST: 1.4, WORSE: 1.2}
"""With the calibration of `fake_models` better by 0.9 wins in 86%, by 0.5 in 73%, worse by 0.2 in 40%."""


@dataclass
class Held(FakeEngine):
    """Writes two words, and the rest once the test lets it (`go.release()`): however slow the machine is,
    what is half written is seen."""

    go: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        words = 0
        async with aclosing(super().generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta
                words += 1
                if words == 2:
                    await self.go.acquire()


def story(texts: Sequence[str] = (BETTER, BEST, WORSE), improver: type[FakeEngine] = FakeEngine) -> Models:
    """Models that write `texts` one after the other; of the usual ones two pass, the third does not."""
    turn: Iterator[str] = cycle(texts)

    def improve(_: Sequence[Message]) -> str:
        return next(turn)

    defaults = SamplingDefaults(max_tokens=64)
    policy = FakeEngine(context_length=4096, defaults=defaults, script=lambda _: DRAFT)
    writer = improver(context_length=4096, defaults=defaults, script=improve)
    judge = FakeScorer(value=lambda text: VALUES.get(text, 0.0), context_length=4096)
    return fake_models(policy, writer, judge)


async def write(page: Page, prompt: str = PROMPT, draft: str = DRAFT) -> None:
    """Fill in the form, once the page says that the server is ready."""
    await expect(page.locator("#run")).to_be_enabled()
    await page.fill("#prompt", prompt)
    await page.fill("#draft", draft)


async def improve(page: Page, prompt: str = PROMPT, draft: str = DRAFT) -> None:
    """Run it to the end by hand."""
    await write(page, prompt, draft)
    await page.click("#run")
    await expect(page.locator(".compare")).to_be_visible()


async def upload(page: Page, lines: str, name: str = "ask.jsonl") -> None:
    """Begin a batch of these lines, on the page of batches."""
    await page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": lines.encode()})
    await page.click("#begin")
