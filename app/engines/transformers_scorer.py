"""The gap reward as a plain forward pass of transformers, on one thread.

On a CPU this is as fast as a pooling engine, and saves a process of several gigabytes.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.checkpoint import Checkpoint
from app.engines.base import Comparison, Scores
from app.engines.chat import ChatEncoder
from app.errors import CheckpointError, ContextTooLong, ScoringUnavailable

TOKENS_A_BATCH = 8192
"""Padded tokens in one forward pass: bounds the memory of a large batch."""


class TransformersScorer:
    """See `Scorer` for what the methods promise. `float32` says which tolerance the golden scores have."""

    def __init__(self, checkpoint: Checkpoint, timeout_s: float) -> None:
        """Load the model. Raises `CheckpointError`."""
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging as transformers_logging

        manifest = checkpoint.manifest
        assert manifest is not None and manifest.gap is not None
        self.context_length = manifest.context_length
        self.model_id = checkpoint.path.name
        self._improve_turn = manifest.improve_turn if manifest.gap.reads == "pair" else None
        self._timeout_s = timeout_s
        self._working_since: float | None = None
        self._encoder = ChatEncoder(checkpoint.path)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        transformers_logging.disable_progress_bar()
        try:
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                str(checkpoint.path), local_files_only=True, dtype=torch.float32
            ).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"The gap reward in {checkpoint.path} cannot be loaded ({type(error).__name__}). Publish it"
                " again."
            ) from error
        if self._model.config.num_labels != 1:
            raise CheckpointError(
                f"The gap reward in {checkpoint.path} has {self._model.config.num_labels} labels, and must"
                " have 1."
            )
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = 0

    async def encode(self, comparison: Comparison) -> list[int]:
        return self._encoder.encode_comparison(comparison, self._improve_turn)

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        rows = [await self.encode(comparison) for comparison in comparisons]
        longest = max(map(len, rows), default=0)
        if longest > self.context_length:
            raise ContextTooLong(
                f"The conversation with both responses takes {longest} tokens for the gap reward, whose"
                " context holds"
                f" {self.context_length}. Shorten the messages or the responses.",
                param="messages",
            )
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                values = await loop.run_in_executor(self._worker, self._work, rows)
        except TimeoutError:
            raise ScoringUnavailable(
                f"The gap reward did not answer within {self._timeout_s:g} s. Try again, or send scoring:"
                " best_effort."
            ) from None
        except RuntimeError as error:
            raise ScoringUnavailable(
                "The gap reward failed to score this response. Try again, or send scoring: best_effort."
            ) from error
        return Scores(values, sum(map(len, rows)))

    async def check_health(self) -> None:
        since = self._working_since
        if since is not None and time.monotonic() - since > self._timeout_s:
            raise ScoringUnavailable(
                f"The gap reward has worked on one batch for over {self._timeout_s:g} s. Try again later."
            )

    async def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _work(self, rows: list[list[int]]) -> list[float]:
        self._working_since = time.monotonic()
        try:
            return self._forward(rows)
        finally:
            self._working_since = None

    def _forward(self, rows: list[list[int]]) -> list[float]:
        """Raw logits of rows of token ids, in their order. Rows of like length share a batch: less
        padding."""
        import torch

        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            # The longest row decides what the others are padded to.
            size = max(1, TOKENS_A_BATCH // max(1, len(rows[order[-1]])))
            batch, order = order[-size:], order[:-size]
            width = len(rows[batch[-1]])
            pad = self._model.config.pad_token_id
            ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in batch])
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
            last = torch.tensor([len(rows[i]) - 1 for i in batch])
            with torch.inference_mode():
                logits = self._logits(ids, mask, last)
            for i, value in zip(batch, logits.tolist(), strict=True):
                scores[i] = float(value)
        return scores

    def _logits(self, ids: Any, mask: Any, last: Any) -> Any:
        """The logit at each row's last token. Shapes: ids, mask (rows, width); last, result (rows,)."""
        import torch

        head = getattr(self._model, "score", None)
        if head is None:  # an encoder: it reads its own pooled token
            return self._model(input_ids=ids, attention_mask=mask).logits[:, 0]
        # The model's own forward looks for the last token that is not padding, which fails where padding is
        # the end token.
        hidden = self._model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return head(hidden[torch.arange(len(last)), last])[:, 0]
