"""`/v1/improve` under 32 users against raw vLLM that is given the same generation calls.

The server's calls of `AsyncLLM.generate` are recorded: prompt ids and sampling, seeds included, in the order
of each run. Then vLLM gets them again, as many runs at a time, the calls of a run one after the other, as the
improvement loop must make them:

- AsyncLLM: the same engines, from a loop without anything around it. It is spared HTTP, the users and
  scoring, which cost time on the same cores.
- vLLM's server: as anybody without this project would call it, one server for each model and users in a
  process of their own. It is spared scoring.

Prefix caches are emptied before each round of each.

`larger` does the same with models of 21M parameters (random weights: only their speed matters): what a token
costs around the engine is the same, what it costs in the engine is nearer to what users run.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from app.bench import Load
from app.engines.vllm import VllmEngine
from app.runtime import Served, start_models
from app.settings import Settings
from tests.contract.vllm_server import vllm_serve
from tests.load.figures import Bar, Result, ratios, spread
from tests.load.inside import drive, engines_of, serving
from tests.load.processes import ROOT, LoadError
from tests.tiny import make_tiny_checkpoint
from training.synthetic import make_pairs

USERS, RUNS, ROUNDS = 32, 128, 4
LARGER_RUNS, LARGER_ROUNDS = 64, 3
WANTED = 0.97
Calls = list[list[tuple[Any, Any, Any]]]
"""The calls of each run, in order: engine, prompt, sampling."""


@dataclass
class Recorder:
    """Stands before an AsyncLLM and keeps what it is asked for, by the task that asks: one a run."""

    llm: Any
    runs: dict[Any, list[tuple[Any, Any, Any]]]

    def generate(self, prompt: Any, parameters: Any, request_id: str, **rest: Any) -> Any:
        if parameters.max_tokens > 1:  # one token is what the supervisor asks for, to see that all is well
            self.runs.setdefault(asyncio.current_task(), []).append((self.llm, prompt, parameters))
        return self.llm.generate(prompt, parameters, request_id, **rest)

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


async def replay(runs: Calls) -> tuple[float, int]:
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


async def over_http(urls: dict[int, str], runs: Calls) -> tuple[float, int]:
    """The recorded calls again, to vLLM's own servers: `urls` by the engine's id. Returns seconds and
    tokens."""
    chains = [
        [{"url": f"{urls[id(llm)]}/v1/completions", "body": _body(*rest)} for llm, *rest in run]
        for run in runs
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.load.calls",
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate(json.dumps({"users": USERS, "chains": chains}).encode())
    if process.returncode:
        raise LoadError(f"throughput: the users of vLLM's servers ended with status {process.returncode}")
    found = json.loads(output)
    return found["seconds"], found["tokens"]


def _body(prompt: Any, parameters: Any) -> dict[str, Any]:
    same = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
    return {
        "model": "served",
        "prompt": prompt["prompt_token_ids"],
        **{name: getattr(parameters, name) for name in same},
    }


@asynccontextmanager
async def vllm_servers(engines: Sequence[VllmEngine], logs: Path) -> AsyncIterator[dict[int, str]]:
    """vLLM's own servers of the same models with the same arguments: their URLs by the engine's id."""
    with ExitStack() as stack:
        urls = {}
        for number, engine in enumerate(engines):
            config = engine._llm.vllm_config
            arguments = (
                *("--served-model-name", "served", "--generation-config", "vllm"),
                *("--max-model-len", str(config.model_config.max_model_len)),
                *("--max-num-seqs", str(config.scheduler_config.max_num_seqs)),
                *("--max-num-batched-tokens", str(config.scheduler_config.max_num_batched_tokens)),
                *("--no-enable-chunked-prefill", "--disable-uvicorn-access-log"),
            )
            server = vllm_serve(Path(config.model_config.model), logs / f"vllm-{number}.log", *arguments)
            urls[id(engine._llm)] = await asyncio.to_thread(stack.enter_context, server)
        yield urls


async def measure(checkpoints: Path, output: Path, rounds: int = ROUNDS, count: int = RUNS) -> Result:
    """Interleaved rounds: improve with the gap reward, raw, raw over HTTP; the same without scoring; and
    again."""
    settings = Settings(
        policy=checkpoints / "policy",
        improver=checkpoints / "improver",
        gap_reward=checkpoints / "gap_reward",
    )
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    served = await start_models(settings)
    try:
        engines = engines_of(served)
        async with vllm_servers(engines, output) as urls:
            return await _measure(served, urls, rounds, count)
    finally:
        await served.close()


async def larger(output: Path) -> Result:
    """`measure` with larger models that are made here."""
    with tempfile.TemporaryDirectory() as made:
        budget = {"prompt": 320, "reference": 96, "response": 64}
        for seed, role in enumerate(("policy", "improver", "gap_reward")):
            size: dict[str, Any] = {"hidden": 512, "layers": 8, "context_length": 640}
            make_tiny_checkpoint(Path(made) / role, role, seed=seed, length_budget=budget, **size)
        result = await measure(Path(made), output, LARGER_ROUNDS, LARGER_RUNS)
    result.name = "throughput_larger"
    return result


async def _measure(served: Served, urls: dict[int, str], rounds: int, count: int) -> Result:
    runs: dict[Any, list[tuple[Any, Any, Any]]] = {}
    engines = engines_of(served)
    for engine in engines:
        engine._llm = Recorder(engine._llm, runs)
    questions = tuple(pair.prompt[0]["content"] for pair in make_pairs(count, 77))
    found: dict[str, list[dict[str, float]]] = {}
    machine = Machine()
    raw: dict[str, Callable[[Calls], Awaitable[tuple[float, int]]]] = {
        "AsyncLLM": replay,
        "vLLM's server": partial(over_http, urls),
    }

    async def forget() -> None:
        for engine in engines:
            await engine._llm.reset_prefix_cache()
        async with httpx.AsyncClient(trust_env=False) as http:
            for url in urls.values():
                (await http.post(f"{url}/reset_prefix_cache")).raise_for_status()

    async with serving(served) as (url, _):
        for number in range(rounds + 1):
            for name, scoring in (("gap", "required"), ("off", "off")):
                options = {"scoring": scoring, "seed": number, "max_iterations": 3}
                load = Load(USERS, count, 240, 120, "pit", questions, None, options)
                await forget()
                runs.clear()
                before = machine.read()
                figures = await drive(url, load, "improve")
                rows = {"improve": _row(figures["tokens_per_s"], figures["seconds"], before, machine.read())}
                # The first run of each user is a warm-up, which the figures leave out too.
                recorded = list(runs.values())[USERS:]
                if len(recorded) != count:
                    raise LoadError(f"throughput: {len(recorded)} runs were recorded of {count}")
                for kind, again in raw.items():
                    await forget()
                    before = machine.read()
                    seconds, tokens = await again(recorded)
                    rows[kind] = _row(tokens / seconds, seconds, before, machine.read())
                if number:
                    for kind, row in rows.items():
                        found.setdefault(f"{kind}, scoring {name}", []).append(row)
    return _result(found)


def _row(
    rate: float, seconds: float, before: tuple[float, float], after: tuple[float, float]
) -> dict[str, float]:
    """CPU seconds include the warm-up of the improving side; they explain, they are no bar."""
    return {
        "tokens/s": rate,
        "tokens": rate * seconds,
        "seconds": seconds,
        "CPU s server": after[0] - before[0],
        "CPU s engines": after[1] - before[1],
    }


def _result(found: dict[str, list[dict[str, float]]]) -> Result:
    result = Result("throughput")
    for name, rounds in found.items():
        result.rows[name] = {column: spread([one[column] for one in rounds]) for column in rounds[0]}
    for name in ("gap", "off"):
        ours = result.rows[f"improve, scoring {name}"]["tokens/s"]
        for raw in ("AsyncLLM", "vLLM's server"):
            ratio = ratios(ours, result.rows[f"{raw}, scoring {name}"]["tokens/s"])
            what = f"tokens/s against {raw}, scoring {name}"
            result.notes.append(f"{what}: {ratio}")
            result.bars.append(Bar(what, ratio.median, WANTED, True))
    return result
