"""Tiny checkpoints, and one real engine of each kind for the whole session."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn

from app.engines.remote import RemoteEngine
from app.engines.remote_scorer import RemoteScorer
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
    # The socket takes requests before the store is open, and would answer them with 503.
    await asyncio.wait_for(app.state.runtime.settled.wait(), 30)
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


GENERATING = (
    *("--served-model-name", "policy", "--max-model-len", "256", "--max-num-seqs", "64"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"),
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
POOLING = ("--served-model-name", "gap", "--max-model-len", "256", "--runner", "pooling")


@pytest.fixture(scope="session")
def servers(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """vLLM's own servers of the policy and of the gap reward, started beside each other."""
    logs = tmp_path_factory.mktemp("vllm")
    # A server ends with the thread that started it: the threads live as long as the servers.
    with ThreadPoolExecutor(2) as threads, ExitStack() as stack:
        both = [
            threads.submit(stack.enter_context, vllm_serve(checkpoints[name], logs / f"{name}.log", *options))
            for name, options in (("both", GENERATING), ("gap", POOLING))
        ]
        yield both[0].result(), both[1].result()


@pytest.fixture(scope="session")
def vllm_server(servers: tuple[str, str]) -> str:
    """The base URL (without /v1) of vLLM's own server, with the checkpoint of `served` as model `policy`."""
    return servers[0]


@pytest.fixture(scope="session")
async def served_remotely(
    servers: tuple[str, str], checkpoints: dict[str, Path]
) -> AsyncGenerator[Served, None]:
    """The same models as `served`, asked for upstream; golden checks included."""
    settings = Settings(
        policy=checkpoints["both"],
        policy_url=(f"{servers[0]}/v1",),
        gap_reward=checkpoints["gap"],
        gap_reward_url=(servers[1],),
    )
    found = await start_models(settings)
    yield found
    await found.close()


@pytest.fixture
def remote_engine(served_remotely: Served) -> RemoteEngine:
    assert isinstance(served_remotely.models.policy, RemoteEngine)
    return served_remotely.models.policy


@pytest.fixture
def remote_scorer(served_remotely: Served) -> RemoteScorer:
    assert isinstance(served_remotely.models.scorer, RemoteScorer)
    return served_remotely.models.scorer
