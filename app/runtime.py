"""The models of a running server: how they start, whether they are ready, how they stop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from prometheus_client import CollectorRegistry

from app.checkpoint import Checkpoint, Flag, read_checkpoint
from app.engines import golden
from app.engines.base import Engine
from app.engines.supervise import SupervisedEngine, Timing
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import EngineStarter, VllmEngine, import_engine, prepare_environment
from app.errors import AppError, CheckpointError, Overloaded, StoreError
from app.improve.gate import GapCalibration
from app.improve.options import Models
from app.settings import Settings

log = logging.getLogger(__name__)


@dataclass
class Served:
    """Models that are up, and how to stop them."""

    models: Models
    close: Callable[[], Awaitable[None]]
    engine_version: str = ""
    engine_metrics: CollectorRegistry | None = None
    """What the engines count themselves."""

    def names(self) -> dict[str, str]:
        """The checkpoints, by what they do."""
        named = {
            "policy": self.models.policy,
            "improver": self.models.improver,
            "gap reward": self.models.scorer,
        }
        return {what: model.model_id for what, model in named.items() if model is not None}


ModelFactory = Callable[[Settings], Awaitable[Served]]
"""Starts the models that the settings name. Raises `CheckpointError`. Tests inject their own."""


def read_checkpoints(settings: Settings) -> dict[Flag, Checkpoint]:
    """Read and verify every directory that the settings name, in a second or so: no engine is started.

    Raises `CheckpointError`, also when no directory is given or two of them cannot work together.
    """
    if settings.policy is None and settings.improver is None:
        raise CheckpointError(
            "Nothing to serve: give --policy DIR, and --improver DIR and --gap-reward DIR to improve."
        )
    found: dict[Flag, Checkpoint] = {}
    if settings.policy:
        found["policy"] = read_checkpoint(settings.policy, "policy", verify=settings.verify)
    if settings.improver:
        found["improver"] = read_checkpoint(settings.improver, "improver", verify=settings.verify)
    elif "policy" in found and (manifest := found["policy"].manifest) and manifest.role == "policy+improver":
        found["improver"] = found["policy"]
    if settings.gap_reward:
        found["gap_reward"] = read_checkpoint(settings.gap_reward, "gap_reward", verify=settings.verify)
        _check_same_turn(found)
    return found


def _check_same_turn(found: dict[Flag, Checkpoint]) -> None:
    """The gap reward reads the improver's conversation: a different improve turn would be a different
    question."""
    improver, reward = found.get("improver"), found["gap_reward"].manifest
    if improver is None or improver.manifest is None or reward is None:
        return
    if improver.manifest.improve_turn != reward.improve_turn:
        raise CheckpointError(
            f"The improver's improve_turn is {improver.manifest.improve_turn!r}, the gap reward's is"
            f" {reward.improve_turn!r}. Serve checkpoints of one training run."
        )


async def start_models(settings: Settings, checkpoints: dict[Flag, Checkpoint] | None = None) -> Served:
    """The real `ModelFactory`: vLLM engines on this machine, the gap reward in this process.

    `checkpoints` are those of `read_checkpoints`, where the caller has read and verified them before.
    """
    if checkpoints is None:
        checkpoints = await asyncio.to_thread(read_checkpoints, settings)
    prepare_environment(settings)
    version = await asyncio.to_thread(import_engine)
    starter = EngineStarter(settings)
    engines: dict[str, VllmEngine] = {}
    supervised: dict[str, SupervisedEngine] = {}
    scorer: TransformersScorer | None = None

    async def close() -> None:
        await asyncio.gather(*(engine.close() for engine in (supervised or engines).values()))
        if scorer:
            await scorer.close()
        starter.close()

    try:
        generating = {c.identity: c for flag, c in checkpoints.items() if flag != "gap_reward"}
        started = await asyncio.gather(
            *(starter.start(c) for c in generating.values()), return_exceptions=True
        )
        for identity, engine in zip(generating, started, strict=True):
            if isinstance(engine, VllmEngine):
                engines[identity] = engine
        for engine in started:
            if isinstance(engine, BaseException):
                raise engine
        # The gap reward is loaded after the engines are forked: a process that has computed must not fork.
        if "gap_reward" in checkpoints:
            scorer = await asyncio.to_thread(
                TransformersScorer, checkpoints["gap_reward"], settings.scoring_timeout_s
            )
        if settings.verify:
            await _verify(checkpoints, engines, scorer)
    except BaseException:
        await close()
        raise
    for identity, checkpoint in generating.items():
        build = partial(_build_again, starter, checkpoint, settings)
        supervised[identity] = SupervisedEngine(engines[identity], build, timing(settings))
    by_flag = {flag: supervised[c.identity] for flag, c in checkpoints.items() if flag != "gap_reward"}
    models = Models(policy=by_flag.get("policy"), improver=by_flag.get("improver"), scorer=scorer)
    return Served(_with_manifests(models, checkpoints), close, version, starter.metrics)


async def _build_again(starter: EngineStarter, checkpoint: Checkpoint, settings: Settings) -> Engine:
    """A new engine in place of one that ended. Spawned: a process that has computed must not fork."""
    engine = await starter.start(checkpoint, method="spawn")
    try:
        if settings.verify:
            flag: Flag = "policy"
            await _verify({flag: checkpoint}, {checkpoint.identity: engine}, None)
    except BaseException:
        await engine.close()
        raise
    return engine


def timing(settings: Settings) -> Timing:
    """How the settings have engines supervised."""
    return Timing(
        watchdog_s=settings.watchdog_s,
        probe_s=settings.probe_s,
        restart_hung_s=settings.restart_hung_s,
        first_delay_s=settings.restart_delay_s,
    )


def _with_manifests(models: Models, checkpoints: dict[Flag, Checkpoint]) -> Models:
    """Add what the manifests say about the improve turn, the gap, and which files these are."""
    known = {str(flag): c.manifest.content_hash for flag, c in checkpoints.items() if c.manifest}
    models = replace(models, identities=known)
    if (improver := checkpoints.get("improver")) and improver.manifest:
        models = replace(models, improve_turn=improver.manifest.improve_turn or "")
    reward = checkpoints.get("gap_reward")
    if reward and reward.manifest and reward.manifest.gap:
        gap = reward.manifest.gap
        models = replace(
            models, calibration=GapCalibration(gap.centering, gap.calibration.a, gap.calibration.b)
        )
    return models


async def _verify(
    checkpoints: dict[Flag, Checkpoint], engines: dict[str, VllmEngine], scorer: TransformersScorer | None
) -> None:
    """Golden samples and a real generation on every model. Raises `CheckpointError`."""
    for flag, checkpoint in checkpoints.items():
        manifest, name = checkpoint.manifest, f"--{flag.replace('_', '-')} {checkpoint.path}"
        if flag == "gap_reward":
            assert scorer is not None and manifest is not None
            await golden.check_scores(scorer, manifest.golden_scores(), golden.tolerance(True), name)
            continue
        engine = engines[checkpoint.identity]
        if manifest:
            allowed = golden.tolerance(engine.float32)
            await golden.check_generation(engine, manifest.golden_generations(), allowed, name)
        await golden.generate_one_token(engine, name)


@dataclass
class Runtime:
    """What the routers reach through `request.app.state.runtime`."""

    settings: Settings
    factory: ModelFactory = start_models
    served: Served | None = None
    failure: str | None = None
    stopping: bool = False
    ready_after_s: float | None = None
    _started: float = field(default_factory=time.monotonic)
    _task: "asyncio.Task[None] | None" = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the models are up, or when they could not be started."""

    def start(self) -> None:
        """Begin to start the models; the server answers /health meanwhile."""
        self._task = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self.served = await self.factory(self.settings)
            self.ready_after_s = time.monotonic() - self._started
        except (CheckpointError, StoreError) as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("start-up failed")
            self.failure = f"start-up failed ({type(error).__name__})"
        finally:
            self.settled.set()

    async def stop(self) -> None:
        """Stop the models, also while they start."""
        self.stopping = True
        if self._task and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.served:
            await self.served.close()

    @property
    def models(self) -> Models:
        """Raises `Overloaded` while the server starts, stops, or could not start."""
        if self.served is None or self.stopping:
            raise Overloaded(
                "The server is stopping. Send the request to another one."
                if self.stopping
                else "The models are not ready yet. /health/ready says why; try again in some seconds.",
                code="not_ready",
            )
        return self.served.models

    async def not_ready_because(self) -> list[str]:
        """Empty when the server can answer; otherwise the reasons, fit to be shown."""
        if self.stopping:
            return ["the server is stopping"]
        if self.failure:
            return [self.failure]
        if self.served is None:
            return ["the models are starting"]
        models = self.served.models
        engines: dict[str, Engine | None] = {"policy": models.policy, "improver": models.improver}
        reasons = []
        for name, engine in engines.items():
            try:
                if engine:
                    await engine.check_health()
            except AppError as error:
                reasons.append(f"{name}: {error.message}")
        return reasons

    async def degraded_because(self) -> list[str]:
        """What does not work while the server can still answer, fit to be shown: best_effort goes without."""
        scorer = self.served.models.scorer if self.served else None
        try:
            if scorer:
                await scorer.check_health()
        except AppError as error:
            return [f"gap reward: {error.message}"]
        return []
