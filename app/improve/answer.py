"""The policy's plain answer, for chat completions with `model: policy`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.engines.base import Delta, Engine
from app.improve import turns
from app.improve.events import TokenCount
from app.improve.options import Models, Options
from app.improve.prompts import Prompts
from app.improve.turns import Turn


class PolicyAnswer:
    """One answer. Make it with `start` (which refuses what cannot be served), then read `deltas()` once."""

    @classmethod
    async def start(cls, models: Models, options: Options) -> "PolicyAnswer":
        """Raises `BadRequest` and `ContextTooLong`."""
        prompts, turn = Prompts(models, options), turns.draft(options.messages)
        _, room = await prompts.check_room(turn, "messages")
        return cls(models.engine("policy"), prompts, turn, room)

    def __init__(self, engine: Engine, prompts: Prompts, turn: Turn, room: int) -> None:
        self.engine, self.prompts, self.turn, self.room = engine, prompts, turn, room
        self.usage = TokenCount()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the generator aborts it."""
        prompt = await self.prompts.prepare(self.turn)
        self.usage.prompt_tokens = prompt.tokens or 0
        sampling = self.prompts.sampling(self.engine, self.room, 0, 0, "draft")
        async with aclosing(self.engine.generate(prompt, sampling)) as deltas:
            async for delta in deltas:
                self.usage.count(delta)
                yield delta
