"""Samples by vLLM before training: a real engine in a process of its own, gone before the stage goes on."""

import json
import os
from pathlib import Path

import pytest

from tests.training.helpers import alone, pairs, publish_tiny, tiny_config
from training import references
from training.errors import ConfigError, TrainingError
from training.references import write_responses


@pytest.mark.engine
def test_vllm_writes_what_transformers_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, token for token. It sees none of a launcher's settings; answers are kept for a resume."""
    config = tiny_config(tmp_path)
    source = publish_tiny(config, "policy")
    prompts = [list(pair.prompt) for pair in pairs(4)]
    worker = alone(config, "improver")
    worker.directory.mkdir(parents=True)
    expected = write_responses(worker, source, prompts, 0.0, 5)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    worker = alone(tiny_config(tmp_path, "references=vllm"), "improver")
    assert write_responses(worker, source, prompts, 0.0, 5) == expected
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not any(b"training.references" in name or b"VLLM" in name for name in names)
    monkeypatch.setattr(references, "_run_engine", lambda *_: pytest.fail("asked again"))
    assert write_responses(worker, source, prompts, 0.0, 5) == expected
    (answer,) = worker.directory.glob("samples-*.answer.json")
    assert all(len(ids) <= config.length.response for ids in json.loads(answer.read_text()))


def test_an_engine_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    worker = alone(tiny_config(tmp_path, "references=vllm"), "improver")
    question = tmp_path / "none.json"
    with pytest.raises(TrainingError, match=r"exit code 1; its log: .*improver\.log"):
        references._run_engine(worker, question, tmp_path / "answer.json")


def test_vllm_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "find_spec", lambda _: None)
    references.check_references(tiny_config(tmp_path))
    with pytest.raises(ConfigError, match=r"references=vllm needs vLLM: pip install"):
        references.check_references(tiny_config(tmp_path, "references=vllm"))


def test_it_decides_the_improver_alone(tmp_path: Path) -> None:
    """Earlier stages are not trained again because of it."""
    plain, other = tiny_config(tmp_path), tiny_config(tmp_path, "references=vllm")
    assert plain.digest("policy") == other.digest("policy")
    assert plain.digest("improver") != other.digest("improver")
