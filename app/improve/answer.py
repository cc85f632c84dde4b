"""The policy's plain answer, for chat completions with `model: policy`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.engines.base import Delta
from app.improve import turns
from app.improve.events import TokenCount
from app.improve.options import Models, Options
from app.improve.prompts import Prompts


class PolicyAnswer:
    """One answer. Make it (which refuses what cannot be served), then read `deltas()` once."""

    def __init__(self, models: Models, options: Options) -> None:
        """Raises `BadRequest` and `ContextTooLong`."""
        self.prompts = Prompts(models, options)
        self.engine = models.engine("policy")
        self.turn = turns.draft(options.messages)
        self.usage = TokenCount()
        self.prompt_tokens, self.room = self.prompts.check_room(self.turn, "messages")

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the generator aborts it."""
        self.usage.prompt_tokens = self.prompt_tokens
        sampling = self.prompts.sampling(self.engine, self.room, 0, 0, "draft")
        async with aclosing(self.engine.generate(self.prompts.encode(self.turn), sampling)) as deltas:
            async for delta in deltas:
                self.usage.completion_tokens += delta.tokens
                self.usage.cached_tokens = max(self.usage.cached_tokens, delta.cached_tokens)
                yield delta
