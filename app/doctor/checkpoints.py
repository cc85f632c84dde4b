"""The checkpoints: readable, whole, fit for each other, and small enough for the memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.checkpoint import FLAGS, Checkpoint, Flag, read_checkpoint
from app.doctor.machine import GIB, has_gpu, memory_limit
from app.doctor.report import Finding, fail, ok, warn
from app.doctor.roles import engines, here
from app.errors import CheckpointError
from app.settings import Settings
from app.start import upstreams

HASH_AT_MOST = GIB
"""Bytes that are hashed without --deep: about a second."""
LARGEST_ECE = 0.1
SMALLEST_CALIBRATION = 100
SERVER_BYTES, ENGINE_BYTES, SCORER_BYTES = int(1.3 * GIB), int(1.1 * GIB), int(0.2 * GIB)
"""Memory without weights and caches, on a CPU: of the server with vLLM imported, of an engine process, of the
gap reward."""


@dataclass
class Read:
    """The checkpoints that could be read, and what was found of each."""

    checkpoints: dict[Flag, Checkpoint] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read(settings: Settings, *, hash_everything: bool) -> Read:
    """Read every directory that the settings name; beside a URL only its manifest."""
    found, remote = Read(), upstreams(settings)
    paths: dict[Flag, Path | None] = {flag: getattr(settings, flag) for flag in FLAGS}
    if not any(paths[flag] or flag in remote for flag in ("policy", "improver")):
        advice = "give --policy DIR, and --improver DIR and --gap-reward DIR to improve; or --policy-url URL"
        found.findings.append(fail("checkpoints", "none is given", advice))
    for flag, path in paths.items():
        if path is None:
            continue
        small = sum(weights.stat().st_size for weights in _weights(path)) <= HASH_AT_MOST
        verify = hash_everything or small
        try:
            checkpoint = read_checkpoint(path, flag, verify=verify, weights=flag not in remote)
        except CheckpointError as error:
            found.findings.append(fail(_name(flag), str(error), "then run pit doctor again"))
            continue
        found.checkpoints[flag] = checkpoint
        found.findings.extend(_alone(flag, checkpoint, verify=verify, upstream=flag in remote))
    return found


def _name(flag: Flag) -> str:
    return flag.replace("_", "-")


def _weights(path: Path) -> list[Path]:
    return [file for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern)]


def _alone(flag: Flag, checkpoint: Checkpoint, *, verify: bool, upstream: bool) -> Iterator[Finding]:
    """One checkpoint by itself."""
    name, path, manifest = _name(flag), checkpoint.path, checkpoint.manifest
    if not upstream and not _weights(path):
        yield fail(name, f"{path} has no weights", "copy the whole directory again")
    if not upstream and not _has_template(path):
        advice = "add chat_template.jinja: conversations are rendered with it"
        yield fail(name, f"{path} has no chat template", advice)
    if manifest is None:
        advice = "publish it with pit-train to have hashes and golden samples checked"
        yield warn(name, f"{path} has no manifest: nothing says how it should answer", advice)
        return
    size = sum(file.stat().st_size for file in _weights(path)) / GIB
    checked = "hashes agree" if verify else f"hashes not checked ({size:.0f} GiB; --deep does)"
    if upstream:
        checked = "only the manifest is read, the model is upstream"
    yield ok(
        name,
        f"{path}: role {manifest.role}, generation {manifest.generation}, context {manifest.context_length},"
        f" {checked}",
    )
    if checkpoint.model_context and manifest.context_length > checkpoint.model_context:
        yield fail(
            name,
            f"the manifest's context of {manifest.context_length} tokens is more than the model's"
            f" {checkpoint.model_context}",
            "publish it again",
        )
    budget = manifest.length_budget
    needed = budget.prompt + budget.response + (0 if manifest.role == "policy" else budget.reference)
    if needed > manifest.context_length:
        yield warn(
            name,
            f"prompt, reference and response of the length budget take {needed} tokens, and the context is"
            f" {manifest.context_length}",
            "long conversations will be refused; train with a longer context",
        )


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    try:
        content: Any = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("chat_template"))


def compare(settings: Settings, found: Read) -> Iterator[Finding]:
    """The checkpoints beside each other."""
    policy, reward = found.checkpoints.get("policy"), found.checkpoints.get("gap_reward")
    improver = found.checkpoints.get("improver")
    if not improver and policy and policy.manifest and policy.manifest.role == "policy+improver":
        improver = policy
    said = {finding.subject for finding in found.findings}
    if not improver and "improver" not in said and not settings.improver_url:
        yield warn("improver", "none: strategy pit is refused", "give --improver DIR")
    if not reward:
        if "gap-reward" not in said and not settings.gap_reward_url:
            advice = "give --gap-reward DIR"
            yield warn("gap-reward", "none: nothing keeps an answer from getting worse", advice)
        return
    assert reward.manifest is not None and reward.manifest.gap is not None
    yield from _calibration(reward)
    if improver is None or improver.manifest is None:
        return
    turns = improver.manifest.improve_turn, reward.manifest.improve_turn
    if turns[0] != turns[1]:
        yield fail(
            "improve turn",
            f"the improver's is {turns[0]!r}, the gap reward's is {turns[1]!r}",
            "serve checkpoints of one training run",
        )
    else:
        yield ok("improve turn", "the same in improver and gap reward")
    longest = improver.manifest.context_length
    if reward.manifest.context_length < longest:
        yield warn(
            "context",
            f"the gap reward reads {reward.manifest.context_length} tokens, the improver {longest}:"
            " long candidates cannot be scored",
            "train the gap reward with the improver's context",
        )


def _calibration(reward: Checkpoint) -> Iterator[Finding]:
    assert reward.manifest is not None and reward.manifest.gap is not None
    fit = reward.manifest.gap.calibration
    said = f"expected error {fit.ece:.3f} on {fit.n} pairs"
    advice = "train it again with more pairs, or raise min_win_probability"
    if fit.a <= 0:
        yield fail("calibration", f"slope {fit.a:g}: a larger gap would mean worse", "train it again")
    elif fit.ece > LARGEST_ECE or fit.n < SMALLEST_CALIBRATION:
        yield warn("calibration", f"{said}: win probabilities mean little", advice)
    else:
        yield ok("calibration", said)


def memory(settings: Settings, found: Read) -> Iterator[Finding]:
    """Whether it fits. On a CPU; on a GPU vLLM says so itself when it starts."""
    ours = {flag: c for flag, c in found.checkpoints.items() if flag in here(settings)}
    generating = {c.identity: c for flag, c in ours.items() if flag != "gap_reward"}
    if has_gpu():
        number = engines(settings)
        share = settings.gpu_memory_utilization * number
        if share > 1:
            advice = f"set gpu_memory_utilization to {0.9 / number:.2f} or less"
            yield fail("memory", f"{number} engines take {share:.0%} of the GPU's", advice)
        return
    if not ours:
        return
    needed = SERVER_BYTES
    for checkpoint in generating.values():
        needed += ENGINE_BYTES + settings.kv_cache_gib * GIB + _loaded_bytes(checkpoint, settings.dtype)
    if reward := ours.get("gap_reward"):
        needed += SCORER_BYTES + _loaded_bytes(reward, "float32")
    total, free = memory_limit()
    said = f"about {needed / GIB:.1f} GiB needed, {free / GIB:.1f} free of {total / GIB:.1f}"
    advice = "lower --kv-cache-gib, serve a smaller model, or give the process more memory"
    if needed > total:
        yield fail("memory", said, advice)
    elif needed > free:
        yield warn("memory", said, "end other programs, or " + advice)
    else:
        yield ok("memory", said)


def _loaded_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """The weights in memory: an engine on a CPU computes in float32 unless it is told otherwise."""
    stored = sum(file.stat().st_size for file in _weights(checkpoint.path))
    wide = dtype in ("auto", "float32")
    return stored * 2 if wide and checkpoint.dtype in ("bfloat16", "float16") else stored
