"""Writes checkpoint directories: an ordinary Hugging Face model and `pit.json` (docs/checkpoint.md).

In the pipeline every stage that trains a model ends here. A directory appears whole or not at all: it is
written beside its place, synced, and renamed. Golden samples let a server prove that it computes what
training computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.chat import encode, encode_completion, gap_messages, improver_messages
from training.checks import positions
from training.errors import CheckpointError
from training.paths import lineage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.config import RunConfig
    from training.data import PreferencePair

FORMAT = 1
MANIFEST = "pit.json"
Role = Literal["policy", "improver", "policy+improver", "gap_reward", "reward", "reader"]
_HASHED = (
    ".safetensors", ".bin", "config.json", "tokenizer.json", "tokenizer_config.json", ".jinja", "vocab.json",
    "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: content hashes, the data's own record, figures of its training."""

    base: str | None
    anchor: str | None
    data: Mapping[str, Any]
    metrics: Mapping[str, float]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of each file that decides what the model computes."""
    names = sorted(p.name for p in directory.iterdir() if p.name.endswith(_HASHED))
    return {name: file_hash(directory / name) for name in names}


def content_hash(directory: Path) -> str:
    """One hash for a model directory: over the lines "NAME HEX\n" of `hash_files`, sorted by name."""
    return hash_of_files(hash_files(directory))


def hash_of_files(files: Mapping[str, str]) -> str:
    """The content hash of a directory whose files have these hashes."""
    lines = (f"{name} {digest.removeprefix('sha256:')}\n" for name, digest in sorted(files.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished checkpoint.

    Raises:
        CheckpointError: it is missing, not JSON, or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: missing, so the directory is no finished checkpoint; "
            f"delete {directory} and run again to train this stage anew"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); delete {directory} and run again to train it anew"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(
            f"{path}: format {found!r}, this version writes and reads {FORMAT}; "
            f"delete {directory} and run again to train this stage anew"
        )
    missing = [key for key in ("role", "gap", "files", "config_hash") if key not in manifest]
    if missing:
        raise CheckpointError(
            f"{path}: no {', no '.join(missing)}; delete {directory} and run again to train this stage anew"
        )
    return manifest


def check_files(directory: Path) -> dict[str, Any]:
    """Read the manifest and compare every file with its hash.

    Raises:
        CheckpointError: a file is missing or changed since it was published.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.exists():
            raise CheckpointError(
                f"{path}: missing; delete {directory} and run again to train this stage anew"
            )
        if file_hash(path) != expected:
            raise CheckpointError(
                f"{path}: does not match its hash in {MANIFEST}; "
                f"delete {directory} and run again to train this stage anew"
            )
    return manifest


def publish(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    role: Role,
    golden: Sequence[Mapping[str, Any]],
    provenance: Provenance,
    adapter: Path | None = None,
) -> None:
    """Write model, tokenizer and manifest to `directory`, atomically.

    `adapter`, where that directory exists, goes along as `adapter/`: the model without its base.
    """
    temporary = _beside(directory)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if adapter is not None and adapter.is_dir():
        shutil.copytree(adapter, temporary / adapter.name)
    manifest = {
        "format": FORMAT,
        "role": role,
        "improve_turn": config.improve_turn if role not in ("reward", "reader") else None,
        "context_length": _context_length(model, config, role),
        "length_budget": config.length.model_dump(),
        "gap": None,
        "base": provenance.base,
        "anchor": provenance.anchor,
        **lineage(config, directory.name),
        "files": hash_files(temporary),
        "golden": list(golden),
        "data": dict(provenance.data),
        "metrics": dict(provenance.metrics),
        "config_hash": config.digest(directory.name),
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": _version(),
    }
    write_json(temporary / MANIFEST, manifest)
    mode = (temporary / MANIFEST).stat().st_mode
    for path in (path for path in temporary.rglob("*") if path.is_file()):
        path.chmod(mode)  # safetensors keeps weights from other users, as the one that a server runs as
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _rename(temporary, directory)


def keep_checkpoint(source: Path, directory: Path, config: RunConfig) -> None:
    """Publish a checkpoint of the generation before once more, as this one's; its files are shared on disk.

    Raises:
        CheckpointError: it is not the one that the configuration names.
    """
    if content_hash(source) != lineage(config, directory.name)["parent"]:
        raise CheckpointError(f"{source} has changed since this generation was opened; put it back")
    temporary = _beside(directory)
    shutil.copytree(source, temporary, copy_function=_link_or_copy)
    changes = {"config_hash": config.digest(directory.name), **lineage(config, directory.name)}
    update_manifest(temporary, changes)
    _rename(temporary, directory)


def share_checkpoint(source: Path, directory: Path) -> None:
    """The same checkpoint at a second place; its files are shared on disk."""
    temporary = _beside(directory)
    shutil.copytree(source, temporary, copy_function=_link_or_copy)
    _rename(temporary, directory)


def _beside(directory: Path) -> Path:
    """A place to write before the rename."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    for left_over in directory.parent.glob(f".{directory.name}.*"):
        shutil.rmtree(left_over, ignore_errors=True)  # of a run that was killed right here
    return directory.with_name(f".{directory.name}.{os.getpid()}")


def _rename(temporary: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)
    sync_directory(directory.parent)


def _link_or_copy(source: str, target: str) -> None:
    # Safe to share: a checkpoint's files are replaced, never written into.
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def update_manifest(directory: Path, changes: Mapping[str, Any]) -> None:
    """Replace fields of a published manifest (calibration comes after it), atomically."""
    manifest = {**read_manifest(directory), **changes}
    temporary = directory / f".{MANIFEST}.{os.getpid()}"
    write_json(temporary, manifest)
    temporary.replace(directory / MANIFEST)
    sync_directory(directory)


def generation_golden(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    improve_turn: str | None,
) -> list[dict[str, Any]]:
    """Golden samples of a policy (`improve_turn` None) or an improver: log-probabilities of y_w."""
    import torch

    samples = []
    for pair in pairs:
        messages = list(pair.prompt)
        if improve_turn is not None:
            messages = improver_messages(pair.prompt, pair.rejected, improve_turn)
        prompt_ids, completion_ids = encode_completion(tokenizer, messages, pair.chosen)
        with torch.inference_mode():
            input_ids = torch.tensor([prompt_ids + completion_ids], device=model.device)
            logits = model(input_ids).logits[0, len(prompt_ids) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(1, input_ids[0, len(prompt_ids) :, None])[:, 0]
        samples.append(
            {
                "messages": messages,
                "prompt_ids": prompt_ids,
                "completion_ids": completion_ids,
                "logprobs": [round(value, 6) for value in chosen.tolist()],
            }
        )
    return samples


def score_golden(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    improve_turn: str | None,
    *,
    with_baseline: bool,
) -> list[dict[str, Any]]:
    """Golden samples of a pointwise reward or (`with_baseline`) a gap reward: raw scores."""
    import torch

    samples: list[dict[str, Any]] = []
    for pair in pairs:
        sample: dict[str, Any] = {"messages": list(pair.prompt), "candidate": pair.chosen}
        if with_baseline:
            sample["baseline"] = pair.rejected
        messages = gap_messages(pair.prompt, pair.chosen, pair.rejected, improve_turn)
        input_ids = encode(tokenizer, [messages])[0]
        with torch.inference_mode():
            score = model(torch.tensor([input_ids], device=model.device)).logits[0, 0].item()
        samples.append({**sample, "input_ids": input_ids, "score": round(score, 6)})
    return samples


def _context_length(model: PreTrainedModel, config: RunConfig, role: Role) -> int:
    budget, alone = config.length, role == "gap_reward" and config.gap_turn is None
    needed = budget.prompt + budget.response + (0 if alone else budget.reference)
    limit = positions(model.config) or needed
    if needed > limit:
        raise CheckpointError(f"the length budget needs {needed} tokens, the model has {limit} positions")
    return limit


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record and sync it; the caller renames the file into its place."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(record, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make renames in a directory outlast a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version() -> str:
    try:
        return version("pit-serve")
    except PackageNotFoundError:
        return "0+unknown"
