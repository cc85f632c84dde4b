"""The end of every stage: what it trained becomes a checkpoint of the stage's name.

Golden samples are computed from the very model that is written: without the trainer's patches, with its
adapter merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.adapters import DIRECTORY
from training.checkpoint import (
    Provenance,
    Role,
    content_hash,
    generation_golden,
    keep_checkpoint,
    publish,
    score_golden,
)
from training.lengths import golden_pairs
from training.models import Trained, plain_causal_lm, plain_reward_model, recommend_sampling
from training.paths import data_record
from training.runtime import Worker


def release_lm(
    worker: Worker,
    trained: Trained,
    tokenizer: Any,
    role: Role,
    source: Path | str | None,
    *,
    anchor: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Publish a policy or an improver that was trained from `source`; only the main worker does anything."""
    if not worker.main:
        return
    config = worker.config
    adapter = worker.directory / DIRECTORY
    plain = plain_causal_lm(config, trained, adapter).eval()
    sampling = config.sampling
    temperature = sampling.policy_temperature if role == "policy" else sampling.improver_temperature
    recommend_sampling(plain, tokenizer, temperature, config.length.response)
    turn = config.improve_turn if role == "improver" else None
    golden = generation_golden(plain, tokenizer, golden_pairs(worker, tokenizer), turn)
    provenance = Provenance(_hash(source), anchor, data_record(config), metrics or {})
    publish(config.output / worker.stage, plain, tokenizer, config, role, golden, provenance, adapter)


def release_reward_model(
    worker: Worker, trained: Trained, tokenizer: Any, role: Role, source: Path | str, seed: int
) -> None:
    """Publish a pointwise or a gap reward that was trained from `source` with `seed`."""
    if not worker.main:
        return
    config = worker.config
    adapter = worker.directory / DIRECTORY
    plain = plain_reward_model(config, trained, source, seed, adapter).eval()
    turn = config.gap_turn if role == "gap_reward" else None
    golden = score_golden(
        plain, tokenizer, golden_pairs(worker, tokenizer), turn, with_baseline=role == "gap_reward"
    )
    provenance = Provenance(_hash(source), None, data_record(config), {})
    publish(config.output / worker.stage, plain, tokenizer, config, role, golden, provenance, adapter)


def keep(worker: Worker) -> None:
    """Publish what a later generation reads and does not train: the same model of the generation before."""
    config = worker.config
    assert config.generation is not None
    if worker.main:
        keep_checkpoint(config.generation.parent / worker.stage, config.output / worker.stage, config)


def _hash(source: Path | str | None) -> str | None:
    """None from scratch, and for a model of the hub: its files are not ours to hash."""
    return content_hash(Path(source)) if source and Path(source).is_dir() else None
