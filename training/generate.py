"""Samples responses with transformers, divided between the workers; for references and for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object, set_seed

from training.chat import Conversation, encode
from training.runtime import Progress, Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sample_responses(
    worker: Worker,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch: int = 96,
) -> list[str]:
    """One response for each conversation, in its order; every worker gets the whole list back.

    Args:
        temperature: 0 takes the likeliest token.
        max_new_tokens: a response is cut there.
    """
    encoded = encode(tokenizer, list(conversations), generation_prompt=True)
    mine = sorted(range(worker.rank, len(encoded), worker.size), key=lambda i: len(encoded[i]))
    set_seed(seed + worker.rank)
    answers: list[tuple[int, str]] = []
    model.eval()
    for start in range(0, len(mine), batch):
        indices = mine[start : start + batch]
        longest = max(len(encoded[i]) for i in indices)
        pad = tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(encoded[i])) + encoded[i] for i in indices])
        mask = torch.tensor([[0] * (longest - len(encoded[i])) + [1] * len(encoded[i]) for i in indices])
        with torch.inference_mode():
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_k=0,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
            )
        texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        answers += zip(indices, texts, strict=True)
        worker.report(Progress(min(start + batch, len(mine)), len(mine)))
    gathered = gather_object(answers) if worker.size > 1 else answers
    return [text for _, text in sorted(gathered)]
