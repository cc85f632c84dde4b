"""A difference between training and serving stops the server: other ids, other weights, another score."""

from pathlib import Path

import pytest

from app.checkpoint import Manifest, read_checkpoint
from app.engines import golden
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.errors import CheckpointError

pytestmark = pytest.mark.engine


def manifest_of(path: Path, flag: str) -> Manifest:
    manifest = read_checkpoint(path, flag).manifest  # type: ignore[arg-type]
    assert manifest is not None
    return manifest


async def test_the_golden_samples_come_out_again(
    real_engine: VllmEngine, checkpoints: dict[str, Path]
) -> None:
    """vLLM's log-probabilities are those of transformers, within a thousandth of a nat."""
    samples = manifest_of(checkpoints["both"], "policy").golden_generations()
    assert len(samples) == 3
    await golden.check_generation(real_engine, samples, golden.tolerance(True), "--policy")


async def test_other_weights_are_noticed(real_engine: VllmEngine, checkpoints: dict[str, Path]) -> None:
    """The improver's samples on the policy's weights: same tokenizer, another model."""
    samples = manifest_of(checkpoints["improver"], "improver").golden_generations()
    with pytest.raises(CheckpointError, match="log-probabilities of golden sample 1"):
        await golden.check_generation(real_engine, samples, golden.tolerance(True), "--policy")


@pytest.mark.parametrize("change", [{"prompt_ids": [5, 9]}, {"logprobs": [float("nan")] * 9}])
async def test_a_changed_manifest_is_noticed(
    real_engine: VllmEngine, checkpoints: dict[str, Path], change: dict[str, list[float]]
) -> None:
    sample = manifest_of(checkpoints["both"], "policy").golden_generations()[0]
    if "logprobs" in change:
        change = {"logprobs": [float("nan")] * len(sample.logprobs)}
    with pytest.raises(CheckpointError, match="golden sample 1"):
        await golden.check_generation(real_engine, [sample.model_copy(update=change)], 0.001, "--policy")


async def test_a_changed_score_is_noticed(
    real_scorer: TransformersScorer, checkpoints: dict[str, Path]
) -> None:
    samples = manifest_of(checkpoints["gap"], "gap_reward").golden_scores()
    await golden.check_scores(real_scorer, samples, 0.001, "--gap-reward")
    for change in ({"score": samples[1].score + 0.01}, {"input_ids": [1, 2]}):
        changed = [samples[0], samples[1].model_copy(update=change), samples[2]]
        with pytest.raises(CheckpointError, match="golden sample 2"):
            await golden.check_scores(real_scorer, changed, 0.001, "--gap-reward")
