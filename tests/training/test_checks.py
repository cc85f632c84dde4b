"""What a run refuses before its first stage: files and models that cannot do their part."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.training.helpers import pairs, publish_tiny, tiny_config, tiny_tokenizer
from training.chat import encode
from training.checks import positions
from training.config import RunConfig
from training.data import write_pairs
from training.errors import CheckpointError, ConfigError, DataError, TrainingError
from training.pipeline import run

EXISTING = ("reader=null", "base.optimizer=null", "sft_policy.replay=0")


def refused(config: RunConfig, error: type[TrainingError], message: str) -> None:
    with pytest.raises(error, match=message):
        run(config, Console(quiet=True))
    assert not config.output.exists()


def test_a_file_for_the_evaluation_that_is_not_there(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", pairs(60))
    data = ("reader=null", "data.format=chat_pairs", f"data.path={tmp_path / 'pairs.jsonl'}")
    config = tiny_config(tmp_path / "run", *data, f"data.heldout_path={tmp_path / 'none.jsonl'}")
    refused(config, DataError, r"none\.jsonl: no such file\. Set data\.heldout_path")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_base_model_that_cannot_be_used(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", *EXISTING, f"base.path={tmp_path / 'base'}")
    refused(config, CheckpointError, "no tokenizer could be loaded")
    base = publish_tiny(tiny_config(tmp_path / "made"), "policy", tmp_path / "base")
    refused(
        tiny_config(tmp_path / "run", *EXISTING, f"base.path={base}", "length.prompt=400"),
        ConfigError, r"prompt 400 .* the model has 512 positions",
    )  # fmt: skip
    (base / "model.safetensors").rename(base / "moved")
    refused(config, CheckpointError, r"the directory has no \*\.safetensors")
    (base / "chat_template.jinja").unlink()
    refused(config, CheckpointError, "the tokenizer has no chat template; use an instruction-tuned model")


def test_a_gap_reward_without_room_for_the_pairs(tmp_path: Path) -> None:
    """Not hours later, when its turn comes."""
    path = publish_tiny(tiny_config(tmp_path / "made"), "policy", tmp_path / "policy")
    config = tiny_config(tmp_path / "run", f"gap_reward.path={path}")
    edit(path / "config.json", max_position_embeddings=200)
    refused(config, ConfigError, r"prompt 64 \+ reference 96 .* gap_reward\.path has 200 positions")
    nothing = tiny_config(tmp_path / "run", f"gap_reward.path={tmp_path}")
    refused(nothing, CheckpointError, "no tokenizer could be loaded")


def test_positions_of_encoders_that_count_from_their_padding() -> None:
    from transformers import BertConfig, RobertaConfig

    assert positions(BertConfig()) == 512
    assert positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_a_template_that_refuses_a_conversation_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(tmp_path))
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(CheckpointError, match=r"refuses a conversation \(no system role\).* system, user"):
        encode(tokenizer, [messages])  # type: ignore[list-item]
