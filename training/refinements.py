"""Refinements that a stage learns from: sampled once from an improver, judged by the gap reward.

For dpo_improver and rft_improver: half of the references are the data's (both y_l and y_w), half the policy's
own answers, as in RL's two phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from training.calibrate import centred_gaps
from training.chat import Conversation, improver_messages
from training.checkpoint import read_manifest
from training.lengths import fitting_pairs
from training.models import load_reading_tokenizer, load_reward_model
from training.paths import gap_reward_names
from training.references import policy_references, write_responses
from training.rl import draw
from training.runtime import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.runtime import Worker


@dataclass(frozen=True)
class Refined:
    """One reference and its distinct refinements: `gaps` are centred, over the reference."""

    conversation: Conversation
    reference: str
    texts: list[str]
    gaps: list[float]


def judged_refinements(
    worker: Worker,
    tokenizer: PreTrainedTokenizerBase,
    improver: Path,
    *,
    seed: int,
    prompts: int,
    samples: int,
    temperature: float,
) -> list[Refined]:
    """`samples` refinements of each of `prompts` references; the same in every worker (all randomness is
    seeded). Empty ones, and those that filled the whole budget and were cut there, are left out."""
    config = worker.config
    pairs = fitting_pairs(worker, tokenizer, "rl")
    from_data = [(list(pair.prompt), y) for pair in pairs for y in (pair.rejected, pair.chosen)]
    drawn = draw(from_data, prompts - prompts // 2, seed)
    asked = draw([list(pair.prompt) for pair in pairs], prompts // 2, seed + 1)
    drawn += zip(asked, policy_references(worker, asked), strict=True)
    conversations = [improver_messages(x, y, config.improve_turn) for x, y in drawn]
    repeated = [messages for messages in conversations for _ in range(samples)]
    texts = write_responses(worker, improver, repeated, temperature, seed)
    candidates = [
        sorted(
            {
                text
                for text in texts[i * samples : (i + 1) * samples]
                if text.strip()
                and len(tokenizer(text, add_special_tokens=False)["input_ids"]) < config.length.response
            }
        )
        for i in range(len(drawn))
    ]
    gaps = _gaps(worker, [(x, each, y) for (x, y), each in zip(drawn, candidates, strict=True)])
    return [
        Refined(conversation, reference, each, found)
        for conversation, (_, reference), each, found in zip(
            conversations, drawn, candidates, gaps, strict=True
        )
    ]


def _gaps(worker: Worker, judged: list[tuple[Conversation, list[str], str]]) -> list[list[float]]:
    """Centred gaps of each reference's refinements, divided between the workers."""
    config = worker.config
    names = gap_reward_names(config)
    reader = load_reading_tokenizer(config.output / names[0])
    models = [load_reward_model(config.output / name, config.seed) for name in names]
    centering = read_manifest(config.output / names[0])["gap"]["centering"]
    found: list[tuple[int, list[float]]] = []
    mine = range(worker.rank, len(judged), worker.size)
    for i in mine:
        prompt, texts, reference = judged[i]
        rows = [(prompt, text, reference) for text in texts]
        found.append((i, centred_gaps(models, reader, rows, config.gap_turn, centering) if rows else []))
        if len(found) % 50 == 0 or len(found) == len(mine):
            worker.report(Progress(len(found), len(mine), "judged"))
    gathered = gather_object(found) if worker.size > 1 else found
    return [gaps for _, gaps in sorted(gathered)]
