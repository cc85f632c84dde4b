"""The loop race: one answer chosen among three candidates, at 200 ms a call of the same mock upstream.

optillm's `bon` asks for three completions in one call and then rates one after the other; its `moa`, `rto`,
`self_consistency` and `re2` stand beside it. Ours generates three candidates side by side and scores them in
one batch. The mock judges as well for everybody, by the gold scorer, so that quality tells what a way of
choosing is worth with a perfect judge; what `moa` and `rto` rewrite is drawn like any other text.
"""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tests.load import peers
from tests.load.figures import Bar, Result, ratios, spread
from tests.load.gateway import Contestant, Rounds, start_gateway, start_peer, upstream
from tests.load.processes import LoadError
from tests.ports import free_port
from training.helpdesk import gold_score
from training.synthetic import make_pairs

ROUNDS, CALL_MS, WANTED = 9, 200, 0.55
APPROACHES = ("bon", "moa", "rto", "self_consistency", "re2")
OURS: dict[str, dict[str, Any]] = {
    "pit, three candidates": {"reference": True, "candidates": 3, "max_iterations": 1},
    "pit, draft and three candidates": {"candidates": 3, "max_iterations": 1},
    "best_of_n of three": {"strategy": "best_of_n", "candidates": 3},
    "self_refine, one iteration": {"reference": True, "strategy": "self_refine", "max_iterations": 1},
}


async def _answer(one: Contestant, body: dict[str, Any], route: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {one.key}"} if one.key else {}
    async with httpx.AsyncClient(base_url=one.server.url, timeout=60, headers=headers) as http:
        answer = await http.post(route, json=body)
    if answer.status_code != 200:
        raise LoadError(f"{one.server.name}: HTTP {answer.status_code} {answer.text[:200]}")
    found: dict[str, Any] = answer.json()
    return found


async def _round(mock: str, one: Contestant, name: str, prompt: str, draft: str) -> dict[str, float]:
    """One answer: milliseconds, the upstream's calls and tokens, the gold score."""
    await _stats(mock)
    messages = [{"role": "user", "content": prompt}]
    started = time.perf_counter()
    if name in OURS:
        body = {"messages": messages, "scoring": "required", **OURS[name]}
        if body.pop("reference", False):
            body["reference"] = draft
        text = (await _answer(one, body, "/v1/improve"))["response"]
    else:
        body = {"model": one.model, "messages": messages}
        text = (await _answer(one, body, "/v1/chat/completions"))["choices"][0]["message"]["content"]
    ms = 1000 * (time.perf_counter() - started)
    seen = await _stats(mock)
    return {
        "ms": ms,
        "generations": seen.get("generations", 0),
        "scorings": seen.get("scorings", 0),
        "tokens": sum(seen.get(kind, 0) for kind in ("prompt_tokens", "completion_tokens", "scored_tokens")),
        "gold": gold_score(prompt, str(text)),
    }


async def _stats(mock: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as http:
        found: dict[str, Any] = (await http.post(f"{mock}/stats")).json()
        return found


async def _race(mock: str, contestants: dict[str, Contestant], rounds: int) -> dict[str, Rounds]:
    found: dict[str, Rounds] = {}
    for number, pair in enumerate(make_pairs(rounds + 1, 80)):
        for name, one in contestants.items():
            row = await _round(mock, one, name, pair.prompt[0]["content"], pair.rejected)
            if number:
                found.setdefault(name, []).append(row)
    return found


def measure(output: Path, rounds: int = ROUNDS) -> Result:
    """Every approach of optillm is a server of its own; they take turns."""
    result = Result("race")
    with ExitStack() as stack, upstream(stack, output, "--delay-ms", str(CALL_MS)) as mock:
        ours = start_gateway(stack, output, mock.url)
        contestants = dict.fromkeys(OURS, ours)
        for approach in APPROACHES:
            port = free_port()
            peer = peers.optillm(mock.url, port, approach)
            contestants[f"optillm {approach}"] = start_peer(stack, output, peer, port)
        found = asyncio.run(_race(mock.url, contestants, rounds))
    for name, rows in found.items():
        result.rows[name] = {column: spread([row[column] for row in rows]) for column in rows[0]}
        result.rows[name]["gold"] = sum(row["gold"] for row in rows) / len(rows)
    bon = result.rows["optillm bon"]["ms"]
    for name in OURS:
        ratio = ratios(result.rows[name]["ms"], bon)
        result.notes.append(f"{name}: {ratio} of the time of optillm bon")
    ratio = ratios(result.rows["pit, three candidates"]["ms"], bon)
    result.bars.append(Bar("one generation and one scoring against optillm bon", ratio.median, WANTED))
    return result
