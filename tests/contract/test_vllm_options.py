"""Ways to run vLLM in the process: adapters over one base, a pooling engine, the user's own arguments."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint import read_checkpoint
from app.engines.base import Comparison, Sampling
from app.engines.supervise import SupervisedEngine
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.engines.vllm_arguments import adapter_rank, typed
from app.engines.vllm_scorer import VllmScorer
from app.errors import CheckpointError
from app.runtime import start_models
from app.settings import Settings
from tests.tiny import make_tiny_checkpoint

FIELDS: dict[str, Any] = {
    "max_num_batched_tokens": int | None,
    "enable_chunked_prefill": bool | None,
    "kv_cache_dtype": str,
    "cudagraph_capture_sizes": list[int] | None,
    "speculative_config": dict[str, Any] | None,
    "gpu_memory_utilization": float,
}


def test_values_become_what_vllm_declares() -> None:
    given = {
        "max-num-batched-tokens": "4096",
        "enable_chunked_prefill": "false",
        "kv_cache_dtype": "fp8",
        "cudagraph_capture_sizes": "[1, 2]",
        "speculative_config": '{"method": "ngram"}',
        "gpu_memory_utilization": 0.5,
    }
    assert typed(FIELDS, given) == {
        "max_num_batched_tokens": 4096,
        "enable_chunked_prefill": False,
        "kv_cache_dtype": "fp8",
        "cudagraph_capture_sizes": [1, 2],
        "speculative_config": {"method": "ngram"},
        "gpu_memory_utilization": 0.5,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_num_batch_tokens": "1"}, "Closest: --vllm-max-num-batched-tokens"),
        ({"max_num_batched_tokens": "many"}, "--vllm-max-num-batched-tokens: 'many' does not fit"),
        ({"model": "other"}, "--vllm-model cannot be set"),
    ],
)
def test_what_vllm_does_not_know_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        typed(FIELDS, given)


def test_a_checkpoint_without_adapter_is_refused(tmp_path: Path) -> None:
    plain = read_checkpoint(make_tiny_checkpoint(tmp_path / "plain"), "policy")
    with pytest.raises(CheckpointError, match=r"has no adapter/ .* Leave --base out"):
        adapter_rank(plain)


@pytest.mark.engine
async def test_adapters_share_one_engine_and_scores_come_from_another(
    real_scorer: TransformersScorer, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Both adapters pass their golden checks (the merged weights' log-probabilities); the pooling engine
    gives transformers' logits. The user's arguments and n-gram speculation take part."""
    base = make_tiny_checkpoint(tmp_path / "base", "policy", seed=5)
    policy = make_tiny_checkpoint(tmp_path / "policy", "policy", seed=6, base=base)
    improver = make_tiny_checkpoint(tmp_path / "improver", "improver", seed=7, base=base)
    served = await start_models(
        Settings(
            policy=policy,
            improver=improver,
            base=base,
            gap_reward=checkpoints["gap"],
            scorer="vllm",
            speculative="ngram",
            vllm={"max_num_batched_tokens": "512", "max-num-seqs": 8},
        )
    )
    try:
        first, second, scorer = served.models.policy, served.models.improver, served.models.scorer
        assert isinstance(first, SupervisedEngine) and isinstance(second, SupervisedEngine)
        assert isinstance(first.engine, VllmEngine) and isinstance(second.engine, VllmEngine)
        assert isinstance(scorer, VllmScorer)
        assert first.engine._llm is second.engine._llm
        scheduler = first.engine._llm.vllm_config.scheduler_config
        assert (scheduler.max_num_batched_tokens, scheduler.max_num_seqs) == (512, 8)
        texts = []
        for engine in (first, second):
            prompt = await engine.prepare([{"role": "user", "content": "What is the price?"}])
            sampling = Sampling(max_tokens=24, temperature=0.0)
            texts.append("".join([delta.text async for delta in engine.generate(prompt, sampling)]))
        assert texts[0] != texts[1]
        asked = [
            Comparison(({"role": "user", "content": "What is the price?"},), candidate, "No.")
            for candidate in ("It is 24.", "Red, and the price of the lamp is 24.")
        ]
        expected, found = await real_scorer.score(asked), await scorer.score(asked)
        assert found.values == pytest.approx(expected.values, abs=1e-4)
        assert found.tokens == expected.tokens
    finally:
        await served.close()


@pytest.mark.engine
async def test_an_adapter_that_was_changed_is_noticed(served: object, tmp_path: Path) -> None:
    """Its files are not in the manifest's hashes: the golden samples tell."""
    base = make_tiny_checkpoint(tmp_path / "base", "policy", seed=5)
    policy = make_tiny_checkpoint(tmp_path / "policy", "policy", seed=6, base=base)
    config = policy / "adapter" / "adapter_config.json"
    changed = json.loads(config.read_text()) | {"lora_alpha": 1}
    config.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="log-probabilities of golden sample 1"):
        await start_models(Settings(policy=policy, base=base))
