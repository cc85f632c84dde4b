"""Tiny checkpoints, and one real engine for the whole session."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.engines.supervise import SupervisedEngine
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.runtime import Served, start_models
from app.settings import Settings
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models: a policy that is its own improver, an improver, a gap reward."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "both": make_tiny_checkpoint(root / "both", "policy+improver", seed=0),
        "improver": make_tiny_checkpoint(root / "improver", "improver", seed=1),
        "gap": make_tiny_checkpoint(root / "gap", "gap_reward", seed=2),
    }


@pytest.fixture(scope="session")
async def served(checkpoints: dict[str, Path]) -> AsyncGenerator[Served, None]:
    """What `pit serve` starts, golden checks included: vLLM with the policy, and the gap reward."""
    found = await start_models(Settings(policy=checkpoints["both"], gap_reward=checkpoints["gap"]))
    yield found
    await found.close()


@pytest.fixture
def real_engine(served: Served) -> VllmEngine:
    assert isinstance(served.models.policy, SupervisedEngine)
    assert isinstance(served.models.policy.engine, VllmEngine)
    return served.models.policy.engine


@pytest.fixture
def real_scorer(served: Served) -> TransformersScorer:
    assert isinstance(served.models.scorer, TransformersScorer)
    return served.models.scorer
