"""How much of iteration 1's prompt the prefix cache holds, where policy and improver share their weights.

The policy has just read x and written y_0; the improver's prompt begins with both. vLLM caches whole blocks
(32 tokens on a CPU), so that a short conversation can share less of its prompt than a long one: the table
shows both, the bar is over all.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.load.figures import Bar, Result
from tests.load.processes import LoadError
from training.serving import server
from training.synthetic import make_pairs

EXAMPLES, WANTED = 40, 0.8
TURNS = (0, 1, 2)
"""Earlier turns of the conversation."""


def shared_checkpoint(improver: Path, directory: Path) -> Path:
    """The improver's checkpoint, also as its own policy."""
    target = directory / "both"
    shutil.copytree(improver, target)
    manifest = json.loads((target / "pit.json").read_text(encoding="utf-8"))
    manifest["role"] = "policy+improver"
    (target / "pit.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target


async def _collect(url: str, count: int) -> dict[int, tuple[int, int]]:
    """Prompt tokens of iteration 1 and how many of them were cached, by the earlier turns."""
    found = {}
    pairs = make_pairs(count * (1 + max(TURNS)), 79)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for turns in TURNS:
            prompt_tokens = cached = 0
            for start in range(count):
                messages: list[Any] = []
                for pair in pairs[start * (1 + turns) :][:turns]:
                    messages += [*pair.prompt, {"role": "assistant", "content": pair.chosen}]
                messages += pairs[start * (1 + turns) + turns].prompt
                body = {"messages": messages, "max_iterations": 1, "scoring": "off", "max_tokens": 48}
                answer = await http.post("/v1/improve", json=body)
                if answer.status_code != 200:
                    raise LoadError(f"HTTP {answer.status_code}: {answer.text[:200]}")
                usage = answer.json()["iterations"][0]["usage"]
                prompt_tokens += usage["prompt_tokens"]
                cached += usage["cached_tokens"]
            found[turns] = (prompt_tokens, cached)
    return found


def measure(runs: Path, output: Path, count: int = EXAMPLES) -> Result:
    """Serve one checkpoint as policy and improver, and read the cached tokens from its answers."""
    with tempfile.TemporaryDirectory() as directory:
        both = shared_checkpoint(runs / "improver", Path(directory))
        command = [sys.executable, "-m", "app.cli", "serve", "--policy", str(both)]
        with server(command, output / "prefix-server.log", 300) as url:
            found = asyncio.run(_collect(url, count))
    result = Result("prefix")
    for turns, (prompt_tokens, cached) in found.items():
        result.rows[f"{turns} earlier turns"] = {
            "prompt tokens": prompt_tokens / count,
            "cached": cached / count,
            "rate": cached / prompt_tokens,
        }
    total = [sum(column) for column in zip(*found.values(), strict=True)]
    result.bars.append(Bar("cached share of iteration 1's prompt", total[1] / total[0], WANTED, True))
    return result
