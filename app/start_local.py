"""Models on this machine: vLLM engines, and the gap reward in this process."""

import asyncio
from collections.abc import Mapping

from app.checkpoint import Checkpoint, Flag
from app.engines import golden
from app.engines.base import Engine
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import EngineStarter, VllmEngine, import_engine, prepare_environment
from app.served import Started
from app.settings import Settings


async def start_local(settings: Settings, checkpoints: Mapping[Flag, Checkpoint]) -> Started:
    """Start an engine for each checkpoint that generates (one for two flags with the same files), and the gap
    reward. Raises `CheckpointError`."""
    generating = {c.identity: c for flag, c in checkpoints.items() if flag != "gap_reward"}
    version = ""
    if generating:
        prepare_environment(settings)
        version = await asyncio.to_thread(import_engine)
    starter = EngineStarter(settings)
    engines: dict[str, VllmEngine] = {}
    scorer: TransformersScorer | None = None

    async def close() -> None:
        await asyncio.gather(*(engine.close() for engine in engines.values()))
        if scorer:
            await scorer.close()
        starter.close()

    try:
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
    by_flag: dict[Flag, Engine] = {
        flag: engines[c.identity] for flag, c in checkpoints.items() if flag != "gap_reward"
    }
    return Started(by_flag, scorer, close, version)


async def _verify(
    checkpoints: Mapping[Flag, Checkpoint], engines: dict[str, VllmEngine], scorer: TransformersScorer | None
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
