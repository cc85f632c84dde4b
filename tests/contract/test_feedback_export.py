"""What a server exports is what training reads: people's preferences become the next generation's data, and
training takes a step on them."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import running
from tests.app.fakes import FakeEngine, factory_of, fake_models
from tests.training.helpers import alone, pairs, publish_tiny, tiny_config
from tests.training.test_feedback import GAP, SMALL, opened
from training.checkpoint import check_files, content_hash, update_manifest
from training.data import load_pairs
from training.prepare import prepare_data

ONE_STEP = {"optimizer": {"kind": "muon", "learning_rate": 0.0005, "batch": 8, "steps": 1}}


@pytest.fixture
async def exported(tmp_path: Path) -> Path:
    """The export of a server whose users preferred, of a run's two responses, the synthetic pairs' better
    one; every fourth wrote it themselves."""
    better = {pair.prompt[-1]["content"]: pair.chosen for pair in pairs(120)}

    def script(messages: Any) -> str:
        return better[messages[0]["content"]]

    engine = FakeEngine(script=script, context_length=2000)
    settings = Settings(database=f"sqlite:///{tmp_path}/pit.db")
    file = tmp_path / "feedback.jsonl"
    async with running(create_app(settings, factory_of(fake_models(improver=engine)))) as client:
        for number, pair in enumerate(pairs(120)):
            body = {"messages": pair.prompt, "reference": pair.rejected, "max_tokens": 200}
            once: dict[str, Any] = {"scoring": "off", "max_iterations": 1}
            run = (await client.post("/v1/improve", json=body | once)).json()
            assert run["response"] == pair.chosen, "the fake writes words"
            said: dict[str, Any] = {"type": "comparison", "preferred": "response", "other": "reference"}
            if number % 4 == 0:
                said = {"type": "correction", "text": pair.chosen, "response": "reference"}
            answer = await client.post("/v1/feedback", json=said | {"run": run["id"]})
            assert answer.status_code == 201
        export = await client.get("/v1/feedback/export")
        file.write_bytes(export.content)
    return file


@pytest.mark.slow
def test_training_takes_a_step_on_what_a_server_exports(exported: Path, tmp_path: Path) -> None:
    read = load_pairs("chat_pairs", exported)
    assert read.report.kept == read.report.read == 120
    assert [(p.prompt, p.chosen, p.rejected) for p in read.pairs] == [
        (p.prompt, p.chosen, p.rejected) for p in pairs(120)
    ]
    assert {pair.source for pair in read.pairs} == {"feedback/comparison", "feedback/correction"}
    config = tiny_config(tmp_path / "run", *SMALL, f"feedback.sft_improver={json.dumps(ONE_STEP)}")
    prepare_data(config)
    for role in ("policy", "improver", "gap_reward", "reward"):
        publish_tiny(config, role)
    publish_tiny(config, "policy", config.output / "base")
    update_manifest(config.output / "gap_reward", {"gap": GAP})
    from training.sft import train_improver  # brings TRL

    child = opened(config, exported)
    prepare_data(child)
    train_improver(alone(child, "improver_sft"))
    trained = child.output / "improver_sft"
    manifest = check_files(trained)
    assert (manifest["generation"], manifest["role"]) == (1, "improver")
    assert content_hash(trained) != content_hash(config.output / "improver")
