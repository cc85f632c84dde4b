"""A checkpoint appears whole or not at all, and whatever was done to it afterwards is noticed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import pairs, publish_tiny, tiny_config, tiny_language_model, tiny_tokenizer
from training.checkpoint import (
    Provenance,
    check_files,
    content_hash,
    generation_golden,
    publish,
    read_manifest,
    update_manifest,
)
from training.errors import CheckpointError
from training.models import load_causal_lm, load_reward_model


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_tiny(tiny_config(tmp_path_factory.mktemp("run")), "improver")


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(published, tmp_path / "improver"))


def test_what_was_published_is_found_whole(published: Path) -> None:
    manifest = check_files(published)
    assert {"model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"} <= manifest[
        "files"
    ].keys()
    assert [path.name for path in published.parent.iterdir() if path.name.startswith(".")] == []


def test_the_weights_may_be_read_by_whoever_may_read_the_manifest(published: Path) -> None:
    """A server in a container is another user."""
    modes = {path.name: path.stat().st_mode for path in published.rglob("*") if path.is_file()}
    assert set(modes.values()) == {modes["pit.json"]}


def test_golden_log_probabilities_are_those_of_a_fresh_forward_pass(published: Path) -> None:
    model = load_causal_lm(published).eval()
    for sample in read_manifest(published)["golden"]:
        ids = torch.tensor([sample["prompt_ids"] + sample["completion_ids"]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(sample["prompt_ids"]) - 1
        found = [logprobs[start + i, token].item() for i, token in enumerate(sample["completion_ids"])]
        assert found == pytest.approx(sample["logprobs"], abs=1e-4)


def test_golden_scores_are_those_of_a_fresh_forward_pass(tmp_path: Path) -> None:
    directory = publish_tiny(tiny_config(tmp_path), "gap_reward")
    model = load_reward_model(directory, seed=99).eval()
    for sample in read_manifest(directory)["golden"]:
        with torch.inference_mode():
            score = model(torch.tensor([sample["input_ids"]])).logits[0, 0].item()
        assert score == pytest.approx(sample["score"], abs=1e-4)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["save_tokenizer", "hash", "rename"])
def test_a_publication_that_is_cut_short_leaves_no_checkpoint_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    config = tiny_config(tmp_path)
    tokenizer = tiny_tokenizer(config)
    model = tiny_language_model(config, tokenizer)
    golden = generation_golden(model, tokenizer, pairs(3), None)

    def write() -> None:
        publish(
            config.output / "policy",
            model,
            tokenizer,
            config,
            "policy",
            golden,
            Provenance(None, None, {}, {}),
        )

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    places: dict[str, tuple[Any, str]] = {
        "save_tokenizer": (type(tokenizer), "save_pretrained"),
        "hash": (publish.__globals__["hash_files"], ""),
        "rename": (Path, "rename"),
    }
    with monkeypatch.context() as patch:
        if moment == "hash":
            patch.setitem(publish.__globals__, "hash_files", killed)
        else:
            patch.setattr(*places[moment], killed)
        with pytest.raises(Killed):
            write()
    assert not (config.output / "policy").exists()
    # A killed process had another id; what it left must go too.
    left = next(config.output.glob(".policy.*"))
    left.rename(left.with_name(".policy.1"))
    write()
    assert [path.name for path in config.output.iterdir()] == ["policy"]
    check_files(config.output / "policy")


def test_a_publication_that_fails_keeps_the_checkpoint_that_was_there(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(copy.parent)
    before = content_hash(copy)
    tokenizer = tiny_tokenizer(config)
    model = tiny_language_model(config, tokenizer)
    monkeypatch.setattr(
        type(tokenizer), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        publish(copy, model, tokenizer, config, "improver", [], Provenance(None, None, {}, {}))
    assert content_hash(copy) == before
    check_files(copy)


def flip_a_byte(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        manifest = json.loads((directory / "pit.json").read_text()) | changes
        kept = {key: value for key, value in manifest.items() if value != "REMOVE"}
        (directory / "pit.json").write_text(json.dumps(kept))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "model.safetensors: does not match its hash"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda d: (d / "pit.json").unlink(), "pit.json: missing"),
        (lambda d: (d / "pit.json").write_text('{"format": 1'), "pit.json: cannot be read"),
        (lambda d: (d / "pit.json").write_bytes(b"\xff\xfe"), "pit.json: cannot be read"),
        (lambda d: (d / "pit.json").write_text("[]"), "format"),
        (edit_manifest(format=2), "format 2, this version writes and reads 1"),
        (edit_manifest(files="REMOVE"), "no files"),
    ],
)
def test_damage_is_named_with_what_to_do(copy: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as error:
        check_files(copy)
    assert message in str(error.value)
    assert f"delete {copy} and run again" in str(error.value)


def test_calibration_enters_a_published_manifest_and_changes_nothing_else(copy: Path) -> None:
    before, files = read_manifest(copy), content_hash(copy)
    gap = {"centering": "self", "calibration": {"a": 1.0, "b": 0.0, "ece": 0.01, "n": 10}}
    update_manifest(copy, {"gap": gap})
    assert read_manifest(copy) == before | {"gap": gap}
    assert content_hash(copy) == files
    assert sorted(path.name for path in copy.iterdir() if path.name.startswith(".")) == []


def test_a_gap_reward_that_reads_the_candidate_alone_needs_no_room_for_the_reference(tmp_path: Path) -> None:
    """What the check before the run lets through is not refused after the training."""
    from transformers import BertConfig, BertForSequenceClassification

    from training.checkpoint import _context_length

    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            max_position_embeddings=200,
        )
    )  # fmt: skip
    alone = tiny_config(tmp_path, "gap_reward.loss=pointwise")
    assert _context_length(model, alone, "gap_reward") == 200  # 64 + 96 of the budget
    with pytest.raises(CheckpointError, match="needs 256 tokens, the model has 200"):
        _context_length(model, tiny_config(tmp_path), "gap_reward")
