"""PIT against Self-Refine at equal or better gold quality: tokens and time of the improvement.

Both start from the same draft of the policy. Blocks of examples are asked in turn of every system, in another
order each time. Each loop is read after every iteration: its mean gold score, and what it has cost up to
there (tokens read and written, those that the gap reward reads included; the server's own milliseconds). The
bars compare the best point that Self-Refine reaches, over its rubrics and iterations, with the cheapest point
of PIT that is at least as good; and both as the server runs them by default: three iterations, the default
rubric, PIT with its gate.
"""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.load.figures import Bar, Result
from tests.load.processes import LoadError
from training.helpdesk import gold_score
from training.serving import server, server_command
from training.synthetic import RUBRICS, make_pairs

EXAMPLES, BLOCK, ITERATIONS, WANTED = 240, 24, 3, 0.6
SYSTEMS: dict[str, dict[str, Any]] = {
    "pit, gate": {"strategy": "pit", "scoring": "required"},
    "pit, no gate": {"strategy": "pit", "scoring": "off"},
    **{
        f"self-refine, {name}": {"strategy": "self_refine", "scoring": "off", "rubric": rubric}
        for name, rubric in RUBRICS.items()
    },
}


@dataclass
class Point:
    """A system after some iterations, over all examples: sums. `tokens` are all; `scored` of them were read
    by the gap reward."""

    gold: float = 0.0
    tokens: float = 0.0
    scored: float = 0.0
    ms: float = 0.0
    examples: int = 0

    def mean(self) -> dict[str, float]:
        return {
            "gold": self.gold / self.examples,
            "tokens": self.tokens / self.examples,
            "of them scored": self.scored / self.examples,
            "ms": self.ms / self.examples,
        }


@dataclass
class Points:
    """Points by system and iteration."""

    found: dict[tuple[str, int], Point] = field(default_factory=dict)
    drafts: Point = field(default_factory=Point)

    def add(self, system: str, prompt: str, answer: dict[str, Any]) -> None:
        """One run, after each iteration. A run that the gate has stopped costs nothing more."""
        best, tokens, scored, ms = answer["reference"], 0.0, 0.0, 0.0
        for number in range(1, ITERATIONS + 1):
            if number <= len(answer["iterations"]):
                one = answer["iterations"][number - 1]
                best = one["text"] if one["accepted"] else best
                scored += one["score_tokens"]
                tokens += one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"]
                tokens += one["score_tokens"]
                ms += one["ms"]
            point = self.found.setdefault((system, number), Point())
            point.gold += gold_score(prompt, best)
            point.tokens += tokens
            point.scored += scored
            point.ms += ms
            point.examples += 1


async def _ask(http: httpx.AsyncClient, route: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(route, json=body)
    if answer.status_code != 200:
        raise LoadError(f"{route}: HTTP {answer.status_code} {answer.text[:200]}")
    found: dict[str, Any] = answer.json()
    return found


async def _collect(url: str, count: int) -> Points:
    points = Points()
    prompts = [pair.prompt[0]["content"] for pair in make_pairs(count, 78)]
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        for start in range(0, count, BLOCK):
            block = list(enumerate(prompts[start : start + BLOCK], start))
            drafts = await asyncio.gather(*(_draft(http, prompt, n, points) for n, prompt in block))
            turn = start // BLOCK % len(SYSTEMS)
            for system in [*SYSTEMS][turn:] + [*SYSTEMS][:turn]:
                asked = zip(block, drafts, strict=True)
                bodies = [_body(system, prompt, n, draft) for (n, prompt), draft in asked]
                answers = await asyncio.gather(*(_ask(http, "/v1/improve", body) for body in bodies))
                for (_, prompt), answer in zip(block, answers, strict=True):
                    points.add(system, prompt, answer)
    return points


async def _draft(http: httpx.AsyncClient, prompt: str, seed: int, points: Points) -> str:
    started = time.perf_counter()
    body = {"model": "policy", "messages": [{"role": "user", "content": prompt}], "seed": seed}
    answer = await _ask(http, "/v1/chat/completions", body)
    text: str = answer["choices"][0]["message"]["content"]
    points.drafts.gold += gold_score(prompt, text)
    points.drafts.tokens += answer["usage"]["total_tokens"]
    points.drafts.ms += 1000 * (time.perf_counter() - started)
    points.drafts.examples += 1
    return text


def _body(system: str, prompt: str, seed: int, draft: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "reference": draft if draft.strip() else ".",
        "max_iterations": ITERATIONS,
        "seed": seed,
        **SYSTEMS[system],
    }


def measure(runs: Path, output: Path, count: int = EXAMPLES) -> Result:
    """Start `pit serve` with a run's checkpoints, ask, judge."""
    with server(server_command(runs), output / "quality-server.log", 300) as url:
        points = asyncio.run(_collect(url, count))
    return _result(points)


def _result(points: Points) -> Result:
    result = Result("quality")
    result.rows["draft"] = points.drafts.mean()
    means = {key: point.mean() for key, point in points.found.items()}
    for (system, number), mean in means.items():
        result.rows[f"{system}, iteration {number}"] = mean
    refined = {key: mean for key, mean in means.items() if key[0].startswith("self-refine")}
    best = max(refined, key=lambda key: refined[key]["gold"])
    result.notes.append(f"best of Self-Refine: {best[0]}, iteration {best[1]}")
    ours, theirs = means["pit, gate", ITERATIONS], means["self-refine, all", ITERATIONS]
    result.notes.append(f"gold by default: PIT {ours['gold']:.2f}, Self-Refine {theirs['gold']:.2f}")
    for what in ("tokens", "ms"):
        result.bars.append(Bar(f"{what}, by default, PIT against it", ours[what] / theirs[what], WANTED))
    for kind in ("pit, gate", "pit, no gate"):
        good = [
            (mean["tokens"], key)
            for key, mean in means.items()
            if key[0] == kind and mean["gold"] >= refined[best]["gold"]
        ]
        if not good:
            result.notes.append(f"{kind} never reaches it")
            continue
        _, key = min(good)
        for what in ("tokens", "ms"):
            ratio = means[key][what] / refined[best][what]
            result.bars.append(Bar(f"{what}, {kind}, iteration {key[1]}, against it", ratio, WANTED))
    return result
