"""Start the engines as `pit serve` would, with their golden samples and a generation, and stop them again."""

import asyncio
import time
from collections.abc import Iterator

from app.doctor.report import Finding, fail, ok, warn
from app.engines.base import Engine, Sampling
from app.errors import AppError, CheckpointError
from app.runtime import Served, start_models
from app.settings import Settings

DEADLINE_S = 600.0
SIDE_BY_SIDE = 8


def check(settings: Settings, *, broken: bool) -> Iterator[Finding]:
    if broken:
        yield warn("engines", "not started", "mend the failures above first")
        return
    yield asyncio.run(_start(settings.model_copy(update={"verify": True})))


async def _start(settings: Settings) -> Finding:
    started = time.monotonic()
    try:
        async with asyncio.timeout(DEADLINE_S):
            served = await start_models(settings)
    except CheckpointError as error:
        return fail("engines", str(error), "mend the checkpoint, or serve the one before it")
    except TimeoutError:
        return fail("engines", f"did not start within {DEADLINE_S:g} s", "look at the memory, and at the log")
    after = time.monotonic() - started
    try:
        rate = await _rate(served)
    except AppError as error:
        return fail("engines", f"started, and a generation failed: {error.message}", "look at the log")
    finally:
        await served.close()
    return ok(
        "engines",
        f"vLLM {served.engine_version} up after {after:.0f} s, golden samples agree, {rate:.0f} tokens/s at"
        f" {SIDE_BY_SIDE}",
    )


async def _rate(served: Served) -> float:
    """Tokens a second of some generations side by side."""
    engine = served.models.policy or served.models.improver
    assert engine is not None
    started = time.monotonic()
    tokens = await asyncio.gather(*(_generate(engine) for _ in range(SIDE_BY_SIDE)))
    return sum(tokens) / (time.monotonic() - started)


async def _generate(engine: Engine) -> int:
    prompt = await engine.prepare([{"role": "user", "content": "Hello"}])
    room = min(32, engine.context_length - (prompt.tokens or 0))
    tokens = 0
    async for delta in engine.generate(prompt, Sampling(max_tokens=max(1, room))):
        tokens += delta.tokens
    return tokens
