"""Models on this machine: vLLM engines under supervision, and the gap reward in an engine or in this
process."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from app.checkpoint import Checkpoint, Flag
from app.engines import golden, vllm_arguments
from app.engines.base import Engine
from app.engines.supervise import SupervisedEngine, Timing
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.engines.vllm_scorer import VllmScorer
from app.engines.vllm_start import EngineStarter, import_engine, on_cpu, prepare_environment
from app.errors import CheckpointError
from app.served import Started
from app.settings import Settings

Checkpoints = Mapping[Flag, Checkpoint]


async def start_local(settings: Settings, checkpoints: Checkpoints) -> Started:
    """Start an engine for each checkpoint that generates (one for two flags with the same files, one for all
    over a base), and the gap reward. Raises `CheckpointError`."""
    version = ""
    if set(checkpoints) != {"gap_reward"} or settings.scorer == "vllm":
        prepare_environment(settings)
        version = await asyncio.to_thread(import_engine)
    models = _Models(settings, EngineStarter(settings))
    try:
        await models.start(checkpoints)
    except BaseException:
        await models.close()
        raise
    supervised = {identity: models.supervise(identity) for identity in models.origins}
    engines: dict[Flag, Engine] = {
        flag: supervised[c.identity] for flag, c in checkpoints.items() if flag != "gap_reward"
    }

    async def close() -> None:
        await asyncio.gather(*(engine.close() for engine in supervised.values()))
        await models.close()

    return Started(engines, models.scorer, close, version, models.starter.metrics)


@dataclass
class _Origin:
    """One AsyncLLM and the engines over it: of one checkpoint, or of several as adapters over a base.

    Built anew it gives all of its engines anew: `taken` says which of them their supervisors have.
    """

    checkpoints: Sequence[Checkpoint]
    base: Path | None = None
    engines: list[VllmEngine] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    building: asyncio.Lock = field(default_factory=asyncio.Lock)

    def make(self, settings: Settings, llm: object) -> list[VllmEngine]:
        if self.base is None:
            return [VllmEngine(self.checkpoints[0], settings, llm)]
        return [VllmEngine(c, settings, llm, adapter=i) for i, c in enumerate(self.checkpoints, 1)]

    def arguments(self, settings: Settings) -> dict[str, object]:
        if self.base is None:
            return vllm_arguments.generation(self.checkpoints[0], settings)
        return vllm_arguments.over_base(self.base, self.checkpoints, settings)

    def engine(self, identity: str) -> VllmEngine:
        return self.engines[[c.identity for c in self.checkpoints].index(identity)]


@dataclass
class _Models:
    """What has been started; `origins` by the identity of the checkpoints that they serve."""

    settings: Settings
    starter: EngineStarter
    origins: dict[str, _Origin] = field(default_factory=dict)
    scorer: TransformersScorer | VllmScorer | None = None

    async def start(self, checkpoints: Checkpoints) -> None:
        settings, reward = self.settings, checkpoints.get("gap_reward")
        generating = {c.identity: c for flag, c in checkpoints.items() if flag != "gap_reward"}
        if settings.base and generating:
            if not (settings.base / "config.json").is_file():
                raise CheckpointError(f"--base {settings.base} is no model directory: it has no config.json.")
            self.origins = dict.fromkeys(generating, _Origin(list(generating.values()), settings.base))
        else:
            self.origins = {identity: _Origin([checkpoint]) for identity, checkpoint in generating.items()}
        pooling = settings.scorer == "vllm" or (settings.scorer == "auto" and not on_cpu())
        starts = [self._start(origin) for origin in {id(o): o for o in self.origins.values()}.values()]
        if reward and pooling:
            starts.append(self._start_pooling(reward))
        for failure in await asyncio.gather(*starts, return_exceptions=True):
            if failure is not None:
                raise failure
        # The gap reward is loaded after the engines are forked: a process that has computed must not fork.
        if reward and not pooling:
            self.scorer = await asyncio.to_thread(TransformersScorer, reward, settings.scoring_timeout_s)
        if settings.verify:
            for flag, checkpoint in checkpoints.items():
                await self._verify(flag, checkpoint)

    async def _start(self, origin: _Origin, method: Literal["fork", "spawn"] | None = None) -> None:
        arguments = origin.arguments(self.settings)
        make = partial(origin.make, self.settings)
        origin.engines = await self.starter.start(str(arguments["model"]), arguments, make, method=method)

    async def _start_pooling(self, checkpoint: Checkpoint) -> None:
        self.scorer = await self.starter.start(
            str(checkpoint.path),
            vllm_arguments.pooling(checkpoint, self.settings),
            partial(VllmScorer, checkpoint, self.settings.scoring_timeout_s),
        )

    def supervise(self, identity: str) -> SupervisedEngine:
        origin = self.origins[identity]
        origin.taken.add(identity)
        build = partial(self._build_again, identity)
        return SupervisedEngine(origin.engine(identity), build, timing(self.settings))

    async def _build_again(self, identity: str) -> Engine:
        """A new engine in place of one that ended. Spawned: a process that has computed must not fork."""
        origin = self.origins[identity]
        async with origin.building:
            if identity in origin.taken:
                # Nobody has built it since: the other engines over it have ended with it.
                await asyncio.gather(*(engine.close() for engine in origin.engines))
                await self._start(origin, "spawn")
                origin.taken.clear()
            try:
                if self.settings.verify:
                    (checkpoint,) = [c for c in origin.checkpoints if c.identity == identity]
                    await self._verify("policy", checkpoint)
            except BaseException:
                await origin.engine(identity).close()
                raise
            finally:
                origin.taken.add(identity)
            return origin.engine(identity)

    async def _verify(self, flag: Flag, checkpoint: Checkpoint) -> None:
        """Golden samples and a real generation. Raises `CheckpointError`."""
        manifest, name = checkpoint.manifest, f"--{flag.replace('_', '-')} {checkpoint.path}"
        if flag == "gap_reward":
            assert self.scorer is not None and manifest is not None
            allowed = golden.tolerance(self.scorer.float32)
            await golden.check_scores(self.scorer, manifest.golden_scores(), allowed, name)
            return
        engine = self.origins[checkpoint.identity].engine(checkpoint.identity)
        if manifest:
            allowed = golden.tolerance(engine.float32)
            await golden.check_generation(engine, manifest.golden_generations(), allowed, name)
        await golden.generate_one_token(engine, name)

    async def close(self) -> None:
        await asyncio.gather(*(e.close() for origin in self.origins.values() for e in origin.engines))
        if self.scorer:
            await self.scorer.close()
        self.starter.close()


def timing(settings: Settings) -> Timing:
    """How the settings have engines supervised."""
    return Timing(
        watchdog_s=settings.watchdog_s,
        probe_s=settings.probe_s,
        restart_hung_s=settings.restart_hung_s,
        first_delay_s=settings.restart_delay_s,
    )
