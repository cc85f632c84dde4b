"""Every way in which a checkpoint directory can be wrong is one clear message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint import Flag, read_checkpoint
from app.errors import CheckpointError
from app.settings import Settings
from app.start import read_checkpoints
from tests.tiny import IMPROVE_TURN, write_manifest

GENERATION = {
    "messages": [{"role": "user", "content": "x"}],
    "prompt_ids": [1],
    "completion_ids": [2],
    "logprobs": [-1.0],
}
GAP = {
    "messages": [{"role": "user", "content": "x"}],
    "candidate": "a",
    "baseline": "b",
    "input_ids": [1],
    "score": 0.1,
}


def make(directory: Path, role: str = "policy", **changes: Any) -> Path:
    """A directory that has the form of a checkpoint; nothing here loads its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "dtype": "float32"}))
    (directory / "model.safetensors").write_bytes(b"weights of " + role.encode())
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.4, "max_new_tokens": 96}))
    write_manifest(directory, role, [GAP if role == "gap_reward" else GENERATION], **changes)
    return directory


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "pit.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def problem(directory: Path, flag: Flag = "policy") -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(directory, flag)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_checkpoint_is_read_with_its_recommended_sampling(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make(tmp_path / "p"), "policy")
    assert checkpoint.manifest is not None
    assert checkpoint.manifest.improve_turn == IMPROVE_TURN
    assert (checkpoint.sampling.temperature, checkpoint.sampling.max_tokens) == (0.4, 96)
    assert checkpoint.context_length(8192) == 256


def test_a_directory_without_a_manifest_is_a_plain_policy_and_nothing_else(tmp_path: Path) -> None:
    directory = make(tmp_path / "p")
    (directory / "pit.json").unlink()
    checkpoint = read_checkpoint(directory, "policy")
    assert checkpoint.manifest is None
    assert checkpoint.context_length(8192) == 512
    assert "no pit.json" in problem(directory, "improver")


def test_the_content_hash_is_that_of_the_specification(tmp_path: Path) -> None:
    """docs/checkpoint.md: SHA-256 of the sorted lines `NAME SHA256HEX`."""
    checkpoint = read_checkpoint(make(tmp_path / "p"), "policy")
    changed = read_checkpoint(make(tmp_path / "q"), "policy")
    assert checkpoint.identity == changed.identity
    assert checkpoint.manifest is not None
    files = checkpoint.manifest.files
    import hashlib

    text = "".join(f"{name} {files[name].split(':')[1]}\n" for name in sorted(files))
    assert checkpoint.identity == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_missing_directories_and_files(tmp_path: Path) -> None:
    assert "does not exist" in problem(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file" in problem(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "config.json" in problem(tmp_path / "empty")
    directory = make(tmp_path / "p")
    (directory / "model.safetensors").unlink()
    assert "lacks model.safetensors" in problem(directory)


def test_weights_that_another_user_owns_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors writes files that only their owner reads, and a container's user is another one."""
    directory = make(tmp_path / "p")
    opened = Path.open

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert problem(directory).endswith(f"Let the server's user read it: chmod -R a+rX {directory}")


def test_a_corrupt_manifest_says_where(tmp_path: Path) -> None:
    directory = make(tmp_path / "p")
    (directory / "pit.json").write_text('{"format": 1,\n "role": ')
    assert "line 2" in problem(directory)
    (directory / "pit.json").write_bytes(b"\xff\xfe")
    assert "UTF-8" in problem(directory)
    (directory / "pit.json").write_text("[]")
    assert "JSON object" in problem(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=2), "format 2"),
        (lambda m: m.pop("format"), "format None"),
        (lambda m: m.pop("role"), "role"),
        (lambda m: m.update(role="king"), "role"),
        (lambda m: m.pop("improve_turn"), "improve_turn"),
        (lambda m: m.pop("context_length"), "context_length"),
        (lambda m: m.update(length_budget={"prompt": 1}), "length_budget"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m.update(golden=[]), "golden"),
        (lambda m: m["golden"][0].pop("logprobs"), "logprobs"),
        (lambda m: m["golden"][0].update(logprobs=[]), "length"),
        (lambda m: m["files"].update({"../secret": "sha256:0"}), "outside"),
    ],
)
def test_a_wrong_manifest_names_the_field(tmp_path: Path, change: Any, said: str) -> None:
    directory = make(tmp_path / "p")
    edit(directory, change)
    assert said in problem(directory)


def test_a_changed_file_is_noticed_unless_verification_is_off(tmp_path: Path) -> None:
    directory = make(tmp_path / "p")
    (directory / "model.safetensors").write_bytes(b"other weights")
    assert "differs from its manifest" in problem(directory)
    read_checkpoint(directory, "policy", verify=False)


@pytest.mark.parametrize(
    ("role", "flag"), [("improver", "policy"), ("policy", "improver"), ("policy", "gap_reward")]
)
def test_a_role_that_does_not_fit_its_option_is_refused(tmp_path: Path, role: str, flag: Flag) -> None:
    message = problem(make(tmp_path / "p", role), flag)
    assert repr(role) in message
    assert "--" + flag.replace("_", "-") in message


def test_a_gap_reward_needs_its_calibration(tmp_path: Path) -> None:
    assert "gap is missing" in problem(make(tmp_path / "g", "gap_reward", gap=None), "gap_reward")


def test_checkpoints_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    improver = make(tmp_path / "i", "improver")
    reward = make(tmp_path / "g", "gap_reward", improve_turn="Make it rhyme.")
    with pytest.raises(CheckpointError, match="improve_turn"):
        read_checkpoints(Settings(improver=improver, gap_reward=reward))
    with pytest.raises(CheckpointError, match="Nothing to serve"):
        read_checkpoints(Settings(gap_reward=reward))


def test_one_directory_serves_both_roles(tmp_path: Path) -> None:
    both = make(tmp_path / "b", "policy+improver")
    found = read_checkpoints(Settings(policy=both))
    assert found["policy"] is found["improver"]
