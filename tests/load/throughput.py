"""`/v1/improve` under 32 users against raw vLLM that is given the same generation calls.

The server's calls of `AsyncLLM.generate` are recorded: prompt ids and sampling, seeds included, in the order
of each run. Then the same engines get them again from a loop without anything around it: as many runs at a
time, the calls of a run one after the other, as the improvement loop must make them. Prefix caches are
emptied before each round of either. The raw side is spared what belongs to an answer: HTTP, the users, and
scoring.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from app.bench import Load
from app.runtime import Served, start_models
from app.settings import Settings
from tests.load.figures import Bar, Result, ratios, spread
from tests.load.inside import drive, engines_of, serving
from tests.load.processes import LoadError
from training.synthetic import make_pairs

USERS, RUNS, ROUNDS = 32, 128, 4
WANTED = 0.97


@dataclass
class Recorder:
    """Stands before an AsyncLLM and keeps what it is asked for, by the task that asks: one a run."""

    llm: Any
    runs: dict[Any, list[tuple[Any, Any, Any]]]

    def generate(self, prompt: Any, parameters: Any, request_id: str) -> Any:
        if parameters.max_tokens > 1:  # one token is what the supervisor asks for, to see that all is well
            self.runs.setdefault(asyncio.current_task(), []).append((self.llm, prompt, parameters))
        return self.llm.generate(prompt, parameters, request_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)


@dataclass
class Machine:
    """CPU seconds of this process and of its engines."""

    own: psutil.Process = field(default_factory=psutil.Process)

    def read(self) -> tuple[float, float]:
        own = sum(self.own.cpu_times()[:2])
        engines = self.own.children(recursive=True)  # the users have ended, or have not begun
        return own, sum(sum(child.cpu_times()[:2]) for child in engines)


async def replay(runs: list[list[tuple[Any, Any, Any]]]) -> tuple[float, int]:
    """The recorded calls again, without anything around them. Returns seconds and tokens."""
    waiting: Iterator[list[tuple[Any, Any, Any]]] = iter(runs)
    tokens = 0

    async def user() -> None:
        nonlocal tokens
        for run in waiting:
            for llm, prompt, parameters in run:
                prompt["arrival_time"] = time.time()
                async for output in llm.generate(prompt, parameters.clone(), uuid.uuid4().hex):
                    tokens += len(output.outputs[0].token_ids)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as users:
        for _ in range(USERS):
            users.create_task(user())
    return time.perf_counter() - started, tokens


async def measure(checkpoints: Path, rounds: int = ROUNDS, count: int = RUNS) -> Result:
    """Interleaved rounds: improve with the gap reward, raw; improve without, raw; and again."""
    settings = Settings(
        policy=checkpoints / "policy",
        improver=checkpoints / "improver",
        gap_reward=checkpoints / "gap_reward",
    )
    served = await start_models(settings)
    try:
        return await _measure(served, rounds, count)
    finally:
        await served.close()


async def _measure(served: Served, rounds: int, count: int) -> Result:
    runs: dict[Any, list[tuple[Any, Any, Any]]] = {}
    engines = engines_of(served)
    for engine in engines:
        engine._llm = Recorder(engine._llm, runs)
    questions = tuple(pair.prompt[0]["content"] for pair in make_pairs(count, 77))
    found: dict[str, list[dict[str, float]]] = {}
    machine = Machine()
    async with serving(served) as (url, _):
        for number in range(rounds + 1):
            for name, scoring in (("gap", "required"), ("off", "off")):
                options = {"scoring": scoring, "seed": number, "max_iterations": 3}
                load = Load(USERS, count, 240, 120, "pit", questions, None, options)
                for engine in engines:
                    await engine._llm.reset_prefix_cache()
                runs.clear()
                before = machine.read()
                figures = await drive(url, load, "improve")
                after = machine.read()
                if number:
                    found.setdefault(f"improve, scoring {name}", []).append(_row(figures, before, after))
                # The first run of each user is a warm-up, which the figures leave out too.
                recorded = list(runs.values())[USERS:]
                if len(recorded) != count:
                    raise LoadError(f"throughput: {len(recorded)} runs were recorded of {count}")
                for engine in engines:
                    await engine._llm.reset_prefix_cache()
                before = machine.read()
                seconds, tokens = await replay(recorded)
                after = machine.read()
                raw = {"tokens_per_s": tokens / seconds, "seconds": seconds, "requests": len(recorded)}
                if number:
                    found.setdefault(f"raw, scoring {name}", []).append(_row(raw, before, after))
    return _result(found)


def _row(
    figures: dict[str, Any], before: tuple[float, float], after: tuple[float, float]
) -> dict[str, float]:
    """CPU seconds include the warm-up of the improving side; they explain, they are no bar."""
    return {
        "tokens/s": figures["tokens_per_s"],
        "tokens": figures["tokens_per_s"] * figures["seconds"],
        "seconds": figures["seconds"],
        "CPU s server": after[0] - before[0],
        "CPU s engines": after[1] - before[1],
    }


def _result(found: dict[str, list[dict[str, float]]]) -> Result:
    result = Result("throughput")
    for name, rounds in found.items():
        result.rows[name] = {column: spread([one[column] for one in rounds]) for column in rounds[0]}
    for name in ("gap", "off"):
        ours, raw = (result.rows[f"{kind}, scoring {name}"]["tokens/s"] for kind in ("improve", "raw"))
        ratio = ratios(ours, raw)
        result.notes.append(f"tokens/s against raw vLLM, scoring {name}: {ratio}")
        result.bars.append(Bar(f"tokens/s against raw vLLM, scoring {name}", ratio.median, WANTED, True))
    return result
