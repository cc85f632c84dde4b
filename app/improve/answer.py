"""The policy's plain completions, for the OpenAI-compatible endpoints: of several prompts, several each."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from app.engines.base import Delta, Engine, Prompt, Sampling
from app.errors import ContextTooLong
from app.improve.events import TokenCount
from app.improve.prompts import DEFAULT_MAX_TOKENS, SMALLEST_ROOM
from app.improve.streams import merge


class Answers:
    """`n` completions of each prompt, side by side. Read `deltas()` once.

    Choice `p * n + j` is the j-th of prompt p. As in vLLM, a seed s makes it draw with s + j.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        blame: str = "messages",
    ) -> None:
        """`blame` is the request's field to shorten. Raises `ContextTooLong` when a prompt leaves no room for
        `max_tokens` (None: the checkpoint's default, as far as there is room)."""
        self.engine, self.prompts, self.n = engine, prompts, n
        self.begun = False
        self._samplings = [
            replace(sampling, max_tokens=_room(engine, prompt, max_tokens, blame)) for prompt in prompts
        ]
        self.counts = [TokenCount(prompt_tokens=p.tokens or 0) for p in prompts for _ in range(n)]

    @property
    def usage(self) -> TokenCount:
        """Tokens of all choices; a prompt is counted once, however many choices it has."""
        total = TokenCount()
        for number, count in enumerate(self.counts):
            total.completion_tokens += count.completion_tokens
            if number % self.n == 0:
                total.prompt_tokens += count.prompt_tokens
                total.cached_tokens += count.cached_tokens
        return total

    def worst_case(self, prompt_tokens: Sequence[int]) -> int:
        """Tokens that all choices may read and write at most, where the prompts have so many."""
        written = self.n * sum(sampling.max_tokens for sampling in self._samplings)
        return written + sum(min(self.engine.context_length, tokens) for tokens in prompt_tokens)

    @property
    def tokens_used(self) -> int:
        """Tokens read and written so far."""
        return self.usage.total if self.begun else 0

    def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """The pieces of all choices as they come, each with the number of its choice. Closing the generator
        aborts what is not finished."""
        self.begun = True
        return merge([self._choice(number) for number in range(len(self.counts))])

    async def _choice(self, number: int) -> AsyncGenerator[tuple[int, Delta], None]:
        prompt, place = divmod(number, self.n)
        sampling, count = self._samplings[prompt], self.counts[number]
        if place and sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + place)
        async with aclosing(self.engine.generate(self.prompts[prompt], sampling)) as deltas:
            async for delta in deltas:
                count.count(delta)
                yield number, delta


async def prepare_all(engine: Engine, texts: Sequence[str | Sequence[int]]) -> list[Prompt]:
    """The prompts of plain texts. Raises `BadRequest` and `EngineFailed`."""
    return await asyncio.gather(*(engine.prepare_text(text) for text in texts))


def _room(engine: Engine, prompt: Prompt, max_tokens: int | None, blame: str) -> int:
    """`max_tokens` for a completion of this prompt. A prompt of unknown length is taken to fit: the engine
    says if it does not."""
    tokens = prompt.tokens or 0
    left = engine.context_length - tokens
    wanted = max_tokens or engine.defaults.max_tokens or DEFAULT_MAX_TOKENS
    needed = max_tokens or min(wanted, SMALLEST_ROOM)
    if left >= needed:
        return min(wanted, left)
    lower = ", or lower max_tokens" if max_tokens else ""
    raise ContextTooLong(
        f"The prompt takes {tokens} tokens, and its completion needs {needed}; the model's context holds"
        f" {engine.context_length}. Shorten {blame} by {needed - left} tokens or more{lower}.",
        param=blame,
    )
