"""Models on this machine: vLLM engines, and the gap reward in an engine or in this process."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from app.checkpoint import Checkpoint, Flag
from app.engines import golden, vllm_arguments
from app.engines.base import Engine
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
        if settings.verify:
            await models.verify(checkpoints)
    except BaseException:
        await models.close()
        raise
    engines: dict[Flag, Engine] = {
        flag: models.engines[c.identity] for flag, c in checkpoints.items() if flag != "gap_reward"
    }
    return Started(engines, models.scorer, models.close, version)


@dataclass
class _Models:
    """What has been started, by the checkpoints' identity."""

    settings: Settings
    starter: EngineStarter
    engines: dict[str, VllmEngine] = field(default_factory=dict)
    scorer: TransformersScorer | VllmScorer | None = None

    async def start(self, checkpoints: Checkpoints) -> None:
        settings, reward = self.settings, checkpoints.get("gap_reward")
        generating = {c.identity: c for flag, c in checkpoints.items() if flag != "gap_reward"}
        pooling = reward is not None and (
            settings.scorer == "vllm" or (settings.scorer == "auto" and not on_cpu())
        )
        if settings.base and generating:
            starts = [self._start_over_base(list(generating.values()))]
        else:
            starts = [self._start_engine(checkpoint) for checkpoint in generating.values()]
        if reward and pooling:
            starts.append(self._start_pooling(reward))
        for failure in await asyncio.gather(*starts, return_exceptions=True):
            if failure is not None:
                raise failure
        # The gap reward is loaded after the engines are forked: a process that has computed must not fork.
        if reward and not pooling:
            self.scorer = await asyncio.to_thread(TransformersScorer, reward, settings.scoring_timeout_s)

    async def _start_engine(self, checkpoint: Checkpoint) -> None:
        self.engines[checkpoint.identity] = await self.starter.start(
            str(checkpoint.path),
            vllm_arguments.generation(checkpoint, self.settings),
            partial(VllmEngine, checkpoint, self.settings),
        )

    async def _start_over_base(self, checkpoints: list[Checkpoint]) -> None:
        """One engine with the base's weights, and each checkpoint as an adapter over them."""
        settings, base = self.settings, self.settings.base
        assert base is not None
        if not (base / "config.json").is_file():
            raise CheckpointError(f"--base {base} is no model directory: it has no config.json.")

        def make(llm: object) -> list[VllmEngine]:
            return [VllmEngine(c, settings, llm, adapter=i) for i, c in enumerate(checkpoints, 1)]

        arguments = vllm_arguments.over_base(base, checkpoints, settings)
        for checkpoint, engine in zip(
            checkpoints, await self.starter.start(str(base), arguments, make), strict=True
        ):
            self.engines[checkpoint.identity] = engine

    async def _start_pooling(self, checkpoint: Checkpoint) -> None:
        self.scorer = await self.starter.start(
            str(checkpoint.path),
            vllm_arguments.pooling(checkpoint, self.settings),
            partial(VllmScorer, checkpoint, self.settings.scoring_timeout_s),
        )

    async def verify(self, checkpoints: Checkpoints) -> None:
        """Golden samples and a real generation on every model. Raises `CheckpointError`."""
        for flag, checkpoint in checkpoints.items():
            manifest, name = checkpoint.manifest, f"--{flag.replace('_', '-')} {checkpoint.path}"
            if flag == "gap_reward":
                assert self.scorer is not None and manifest is not None
                allowed = golden.tolerance(self.scorer.float32)
                await golden.check_scores(self.scorer, manifest.golden_scores(), allowed, name)
                continue
            engine = self.engines[checkpoint.identity]
            if manifest:
                allowed = golden.tolerance(engine.float32)
                await golden.check_generation(engine, manifest.golden_generations(), allowed, name)
            await golden.generate_one_token(engine, name)

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self.engines.values()))
        if self.scorer:
            await self.scorer.close()
        self.starter.close()
