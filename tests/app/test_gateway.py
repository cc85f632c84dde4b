"""A server before upstreams only: its settings, its start, its weight."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.engines.base import Message
from app.errors import CheckpointError
from app.main import create_app
from app.settings import Settings, SettingsError, load_settings
from app.start import read_checkpoints, start_models
from tests.app.conftest import running
from tests.app.upstream import FakeUpstream, free_address
from tests.tiny import write_manifest

ROOT = Path(__file__).resolve().parents[2]
CHAT: list[Message] = [{"role": "user", "content": "What color is the lamp?"}]


async def test_a_gateway_of_three_upstreams(tmp_path: Path) -> None:
    """Settings to served models: an improvement, its turn and calibration from manifests without weights."""
    policy, improver, gap = FakeUpstream(), FakeUpstream(words=("Better",)), FakeUpstream()
    async with policy.running(), improver.running(), gap.running():
        settings = load_settings(
            policy_url=[policy.url + "/v1"],
            improver_url=f"{improver.url}, {policy.url}",
            gap_reward_url=[gap.url],
            improver_model="fake",
            upstream_health_path="/ping",
        )
        served = await start_models(settings)
        notes = " ".join(served.notes)
        assert "Please improve your answer." in notes and "not calibrated" in notes
        assert served.names() == {"policy": "fake", "improver": "fake", "gap reward": "fake"}
        await served.close()
        async with running(create_app(settings)) as client:
            assert (await client.get("/health/ready")).status_code == 200
            body = {"messages": CHAT, "reference": "Blue.", "store": False}
            answer = (await client.post("/v1/improve", json=body)).json()
            assert answer["scoring"] == "gap"
            assert answer["iterations"][0]["text"] in ("Better", "It is red")
        assert policy.seen["/ping"] and not policy.seen["/health"]


async def test_a_manifest_beside_a_url_needs_no_weights(tmp_path: Path) -> None:
    directory = tmp_path / "gap"
    directory.mkdir()
    (directory / "tokenizer.json").write_text("{}")
    golden = {"messages": CHAT, "candidate": "a", "baseline": "b", "input_ids": [1], "score": 0.0}
    write_manifest(directory, "gap_reward", [golden], improve_turn="Do better.")
    (directory / "tokenizer.json").unlink()
    async with FakeUpstream().running() as upstream:
        url = (upstream.url,)
        settings = Settings(gap_reward=directory, verify=False, improver_url=url, gap_reward_url=url)
        served = await start_models(settings)
        assert served.models.improve_turn == "Do better."
        assert served.models.calibration.a == 4.0
        assert served.notes == ()
        await served.close()
        with pytest.raises(CheckpointError, match=r"vllm is a setting of engines here"):
            read_checkpoints(Settings(improver_url=(upstream.url,), vllm={"seed": 1}))
        with pytest.raises(CheckpointError, match=r"has no pit\.json, which is all"):
            read_checkpoints(Settings(improver=tmp_path, improver_url=(upstream.url,)))


async def test_a_start_waits_for_an_upstream_and_says_what_is_wrong() -> None:
    address = free_address()
    settings = Settings(policy_url=(address,), upstream_start_timeout_s=10)
    start = asyncio.create_task(start_models(settings))
    await asyncio.sleep(0.3)
    assert not start.done()
    async with FakeUpstream().running(int(address.rsplit(":")[-1])):
        await (await start).close()
        wrong = settings.model_copy(update={"policy_model": "other"})
        with pytest.raises(CheckpointError, match=r"no model 'other' \(--policy-model\)\. It has: fake"):
            await start_models(wrong)
    with pytest.raises(CheckpointError, match="--policy-url cannot be used"):
        await start_models(settings.model_copy(update={"upstream_start_timeout_s": 0.1}))


@pytest.mark.parametrize("value", ["localhost:8000", "ftp://host", "http://user:pw@host"])
def test_an_address_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"policy_url.*write http://HOST:PORT"):
        load_settings(policy_url=[value])


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIT_POLICY_URL", "http://a:1/v1/, http://b:2")
    monkeypatch.setenv("PIT_UPSTREAM_API_KEY", "secret")
    settings = load_settings()
    assert settings.policy_url == ("http://a:1", "http://b:2")
    assert "secret" not in repr(settings)


async def test_a_gateway_is_light() -> None:
    """`pit serve` with upstreams only: no torch, transformers or vllm, and little memory."""
    import psutil  # type: ignore[import-untyped]

    async with FakeUpstream().running() as upstream:
        port = free_address().rsplit(":")[-1]
        options = ("--port", port, "--policy-url", upstream.url, "--improver-url", upstream.url)
        command = [sys.executable, "-X", "importtime", "-m", "app.cli", "serve", *options]
        environment = {**os.environ, "PIT_DATABASE": "none"}
        server = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        assert server.stderr is not None
        imported = asyncio.create_task(server.stderr.read())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client, asyncio.timeout(30):
                while True:
                    try:
                        if (await client.get("/health/ready")).status_code == 200:
                            break
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(0.1)
                parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
                client.headers["traceparent"] = parent
                body = {"model": "policy", "messages": CHAT}
                for _ in range(50):
                    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert parent.encode() in upstream.headers[-1], "a trace ends at the gateway"
            assert psutil.Process(server.pid).memory_info().rss < 200e6
        finally:
            server.terminate()
            await server.wait()
        modules = {line.split("|")[-1].strip() for line in (await imported).decode().splitlines()}
        assert "aiohttp" in modules
        assert not modules & {"torch", "transformers", "vllm", "numpy"}
