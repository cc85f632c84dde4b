"""Tiny checkpoints, and one real engine for the whole session."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import uvicorn

from app.engines.supervise import SupervisedEngine
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.main import create_app
from app.runtime import Served, start_models
from app.settings import Settings
from tests.contract.vllm_server import vllm_serve
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
    settings = Settings(
        policy=checkpoints["both"],
        gap_reward=checkpoints["gap"],
        tool_call_parser="hermes",
        engine_metrics=True,
    )
    found = await start_models(settings)
    yield found
    await found.close()


@pytest.fixture(scope="session")
async def url(served: Served, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str, None]:
    """The session's engine behind HTTP, with a store."""
    settings = Settings(database=f"sqlite:///{tmp_path_factory.mktemp('store')}/pit.db")

    async def close() -> None:
        """The engine goes on: other tests use it."""

    async def factory(_: Settings) -> Served:
        return Served(served.models, close, served.engine_version, served.engine_metrics)

    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings, factory)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await app.state.runtime.settled.wait()  # the store opens first
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
def real_engine(served: Served) -> VllmEngine:
    assert isinstance(served.models.policy, SupervisedEngine)
    assert isinstance(served.models.policy.engine, VllmEngine)
    return served.models.policy.engine


@pytest.fixture
def real_scorer(served: Served) -> TransformersScorer:
    assert isinstance(served.models.scorer, TransformersScorer)
    return served.models.scorer


@pytest.fixture(scope="session")
def vllm_server(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL (without /v1) of vLLM's own server, with the checkpoint of `served` as model `policy`."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    options = ("--served-model-name", "policy", "--max-model-len", "256", "--max-num-seqs", "64")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    structured = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    with vllm_serve(
        checkpoints["both"], log, *options, *tools, "--structured-outputs-config", structured
    ) as url:
        yield url
