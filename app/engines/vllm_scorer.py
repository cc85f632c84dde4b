"""The gap reward in a pooling engine of vLLM: for a GPU, and for models that one forward pass at a time would
keep waiting."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from app.checkpoint import Checkpoint
from app.engines.base import Comparison, Scores
from app.engines.chat import ChatEncoder
from app.engines.together import together
from app.engines.vllm import stop
from app.errors import ContextTooLong, ScoringUnavailable

log = logging.getLogger(__name__)


class VllmScorer:
    """See `Scorer` for what the methods promise."""

    def __init__(self, checkpoint: Checkpoint, timeout_s: float, llm: Any) -> None:
        manifest = checkpoint.manifest
        assert manifest is not None and manifest.gap is not None
        self.context_length, self.model_id = manifest.context_length, checkpoint.path.name
        self.float32 = "float32" in str(llm.model_config.dtype)
        self._improve_turn = manifest.improve_turn if manifest.gap.reads == "pair" else None
        self._timeout_s, self._llm, self._closed = timeout_s, llm, False
        self._encoder = ChatEncoder(checkpoint.path)

    async def encode(self, comparison: Comparison) -> list[int]:
        return self._encoder.encode_comparison(comparison, self._improve_turn)

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        rows = [await self.encode(comparison) for comparison in comparisons]
        longest = max(map(len, rows), default=0)
        if longest > self.context_length:
            raise ContextTooLong(
                f"The conversation with both responses takes {longest} tokens for the gap reward, whose"
                f" context holds {self.context_length}. Shorten the messages or the responses.",
                param="messages",
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await together([self._score(ids) for ids in rows])
        except TimeoutError:
            raise ScoringUnavailable(
                f"The gap reward did not answer within {self._timeout_s:g} s. Try again, or send scoring:"
                " best_effort."
            ) from None
        return Scores(values, sum(map(len, rows)))

    async def check_health(self) -> None:
        if self._closed or self._llm.errored:
            raise ScoringUnavailable("The gap reward's process has ended. Start the server again.")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await stop(self._llm)

    async def _score(self, ids: list[int]) -> float:
        """The raw logit. Raises `ScoringUnavailable`."""
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompt = tokens_input(ids)
        prompt["arrival_time"] = time.time()
        value: float | None = None
        try:
            asked = self._llm.encode(
                prompt, PoolingParams(task="classify", use_activation=False), uuid.uuid4().hex
            )
            async with contextlib.aclosing(asked) as outputs:
                async for output in outputs:
                    (value,) = output.outputs.data.tolist()
        except (EngineDeadError, EngineGenerateError) as error:
            log.error("scoring failed: %s", type(error).__name__)
        if value is None:
            raise ScoringUnavailable(
                "The gap reward failed to score this response. Try again, or send scoring: best_effort."
            )
        return float(value)
