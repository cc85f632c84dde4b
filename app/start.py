"""Starting the models that the settings name: engines on this machine, upstream servers, or both."""

import asyncio
from dataclasses import replace

from app.checkpoint import FLAGS, Checkpoint, Flag, read_checkpoint
from app.errors import CheckpointError
from app.improve.gate import GapCalibration
from app.improve.options import Models
from app.served import Served, Started
from app.settings import Settings
from app.start_local import start_local
from app.start_remote import start_remote

DEFAULT_IMPROVE_TURN = "Please improve your answer."


Checkpoints = dict[Flag, Checkpoint]


def upstreams(settings: Settings) -> dict[Flag, tuple[str, ...]]:
    """The upstream servers of each role that has some."""
    given = {
        "policy": settings.policy_url,
        "improver": settings.improver_url,
        "gap_reward": settings.gap_reward_url,
    }
    return {flag: given[flag] for flag in FLAGS if given[flag]}


def read_checkpoints(settings: Settings) -> Checkpoints:
    """Read and verify every directory that the settings name, in a second or so: no engine is started.

    Raises `CheckpointError`, also when there is nothing to serve or two of them cannot work together.
    """
    remote = upstreams(settings)
    given = {"policy": settings.policy, "improver": settings.improver, "gap_reward": settings.gap_reward}
    if not any(given[flag] or flag in remote for flag in ("policy", "improver")):
        raise CheckpointError(
            "Nothing to serve: give --policy DIR, and --improver DIR and --gap-reward DIR to improve;"
            " or --policy-url URL and the like for models that other servers have."
        )
    if not any(given[flag] and flag not in remote for flag in ("policy", "improver")):
        for name in ("base", "speculative", "vllm"):
            if getattr(settings, name):
                raise CheckpointError(f"{name} is a setting of engines here, and every model has a URL.")
    found: Checkpoints = {}
    for flag in FLAGS:
        if path := given[flag]:
            found[flag] = read_checkpoint(path, flag, verify=settings.verify, weights=flag not in remote)
    if "improver" not in found and "improver" not in remote and "policy" in found:
        manifest = found["policy"].manifest
        if manifest and manifest.role == "policy+improver":
            found["improver"] = found["policy"]
    _check_same_turn(found)
    return found


def _check_same_turn(found: Checkpoints) -> None:
    """The gap reward reads the improver's conversation: a different improve turn would be a different
    question."""
    turns = {flag: c.manifest.improve_turn for flag, c in found.items() if c.manifest}
    if "improver" in turns and "gap_reward" in turns and turns["improver"] != turns["gap_reward"]:
        raise CheckpointError(
            f"The improver's improve_turn is {turns['improver']!r}, the gap reward's is"
            f" {turns['gap_reward']!r}. Serve checkpoints of one training run."
        )


async def start_models(settings: Settings, checkpoints: Checkpoints | None = None) -> Served:
    """The real `ModelFactory`. A role with a URL is asked for upstream, another runs on this machine.

    `checkpoints` are those of `read_checkpoints`, where the caller has read and verified them before.
    """
    if checkpoints is None:
        checkpoints = await asyncio.to_thread(read_checkpoints, settings)
    remote = upstreams(settings)
    shared = checkpoints.get("improver") is checkpoints.get("policy") and "improver" in checkpoints
    if shared and "policy" in remote:
        remote["improver"] = remote["policy"]
    local = {flag: checkpoint for flag, checkpoint in checkpoints.items() if flag not in remote}
    turn, note = improve_turn(checkpoints, settings)
    parts: list[Started] = []

    async def close() -> None:
        await asyncio.gather(*(part.close() for part in parts))

    try:
        # Upstreams first: that they do not answer is known in a moment, engines take half a minute.
        if remote:
            parts.append(await start_remote(settings, remote, checkpoints, turn))
        if local:
            parts.append(await start_local(settings, local))
    except BaseException:
        await close()
        raise
    engines = {flag: engine for part in parts for flag, engine in part.engines.items()}
    scorer = next((part.scorer for part in parts if part.scorer), None)
    models = Models(
        policy=engines.get("policy"),
        improver=engines.get("improver"),
        scorer=scorer,
        improve_turn=turn if "improver" in engines else "",
        identities={str(flag): c.manifest.content_hash for flag, c in checkpoints.items() if c.manifest},
    )
    notes = [note for part in parts for note in part.notes]
    if note and (models.improver or models.scorer):
        notes.append(note)
    if scorer:
        calibration, note = gap_calibration(checkpoints)
        models = replace(models, calibration=calibration)
        notes += [note] if note else []
    versions = dict.fromkeys(part.version for part in parts if part.version)
    metrics = next((part.metrics for part in parts if part.metrics), None)
    return Served(models, close, ", ".join(versions), metrics, tuple(notes))


def improve_turn(checkpoints: Checkpoints, settings: Settings) -> tuple[str, str | None]:
    """The sentence that asks for an improvement, and a note where nothing says it."""
    for flag in ("improver", "gap_reward"):
        checkpoint = checkpoints.get(flag)
        if checkpoint and checkpoint.manifest and checkpoint.manifest.improve_turn:
            return checkpoint.manifest.improve_turn, None
    if settings.improve_turn:
        return settings.improve_turn, None
    return DEFAULT_IMPROVE_TURN, (
        f"no manifest and no --improve-turn: the improver is asked {DEFAULT_IMPROVE_TURN!r}"
    )


def gap_calibration(checkpoints: Checkpoints) -> tuple[GapCalibration, str | None]:
    """How to read the gap reward's scores, and a note where nothing says it."""
    reward = checkpoints.get("gap_reward")
    if reward and reward.manifest and reward.manifest.gap:
        fitted = reward.manifest.gap.calibration
        return GapCalibration(reward.manifest.gap.centering, fitted.a, fitted.b), None
    default = GapCalibration()
    return default, (
        "no --gap-reward DIR beside its URL: win probabilities are not calibrated"
        f" (centering {default.centering}, a {default.a:g}, b {default.b:g})"
    )
