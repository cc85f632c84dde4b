"""The systems that an evaluation compares, asked through the HTTP interface that answers users.

In the pipeline this is evaluation's only way to a model: whatever the loop, its gate or its sampling does
to a user, it does here. `Client` sends one request with a deadline and retries only what was surely not
begun (no connection, or 503 with Retry-After); `SYSTEMS` says what each system asks for.

Deviation from the paper: none in the systems themselves; Self-Refine's prompt texts are ours, the paper
prints none.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from training.data import PreferencePair
from training.errors import TrainingError
from training.synthetic import RUBRICS

Body = dict[str, Any]
BEST_OF = 4


class CallFailed(TrainingError):
    """One request failed for good. `refused`: the server says that this request can never be served (4xx)."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class Client:
    """Sends requests to one server. `deadline_s` covers a call with all its retries."""

    http: httpx.AsyncClient
    deadline_s: float = 120.0
    pause_s: float = 0.2

    async def post(self, route: str, body: Body) -> Body:
        """The answer's JSON.

        Raises:
            CallFailed: the server refused, failed, or gave no answer before the deadline.
        """
        waiting_for = "no connection"
        try:
            async with asyncio.timeout(self.deadline_s):
                while True:
                    try:
                        answer = await self.http.post(route, json=body)
                    except (httpx.ConnectError, httpx.ConnectTimeout):
                        await asyncio.sleep(self.pause_s)
                        continue
                    if answer.status_code != 503 or "retry-after" not in answer.headers:
                        break
                    waiting_for = _reason(answer)
                    await asyncio.sleep(max(self.pause_s, _seconds(answer.headers["retry-after"])))
        except TimeoutError:
            message = f"{route} gave no answer within {self.deadline_s:g} s ({waiting_for})"
            raise CallFailed(message, refused=False) from None
        except httpx.HTTPError as error:
            raise CallFailed(
                f"{route}: the connection broke ({type(error).__name__})", refused=False
            ) from error
        if answer.status_code == 200:
            return dict(answer.json())
        raise CallFailed(f"{route}: {_reason(answer)}", refused=400 <= answer.status_code < 500)


def _reason(answer: httpx.Response) -> str:
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "the answer is not from pit serve"
    return f"{message} (HTTP {answer.status_code})"


def _seconds(value: str) -> float:
    try:
        return max(0.0, float(value))
    except ValueError:
        return 1.0


@dataclass(frozen=True)
class Plan:
    """What is asked of every system. `temperature` None: as each checkpoint recommends.

    `from_draft`: the systems improve the data's own draft (`rejected`) instead of the policy's answer.
    """

    iterations: int = 5
    self_refine_iterations: int = 3
    temperature: float | None = None
    seed: int = 0
    from_draft: bool = False

    def systems(self) -> dict[str, System]:
        """The systems of this plan by name, in the order in which one prompt asks them."""
        chosen: dict[str, System] = {"pit": _pit, "pit_gated": _pit_gated, "score": _score}
        if not self.from_draft:
            chosen = {"original": _original, **chosen, "best_of_n": _best_of_n}
            chosen |= {self_refine(name): _refiner(rubric) for name, rubric in RUBRICS.items()}
        return chosen


System = Callable[[Plan, PreferencePair, str], tuple[str, Body]]
"""From the plan, the example and the response to improve to a route and a request body."""


def self_refine(rubric: str) -> str:
    """The name of the Self-Refine system with this rubric."""
    return f"self_refine:{rubric}"


def call_seed(plan: Plan, example: str, system: str) -> int:
    """The seed of one call. PIT with and without the gate share theirs, so that the gate is all that
    differs."""
    name = "pit" if system == "pit_gated" else system
    digest = hashlib.sha256(f"{plan.seed}/{example}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _original(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
    seed = call_seed(plan, pair.id, "original")
    return "/v1/chat/completions", {"model": "policy", "messages": list(pair.prompt), "seed": seed}


def _improve(
    plan: Plan, pair: PreferencePair, reference: str, system: str, **options: Any
) -> tuple[str, Body]:
    body = {
        "messages": list(pair.prompt),
        "reference": reference,
        "seed": call_seed(plan, pair.id, system),
        **options,
    }
    if plan.temperature is not None and system != "best_of_n":
        body["temperature"] = plan.temperature
    return "/v1/improve", body


def _pit(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
    return _improve(
        plan, pair, reference, "pit", strategy="pit", scoring="off", max_iterations=plan.iterations
    )


def _pit_gated(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
    # With this patience no rejection ends the run: the record then shows every iteration, and also, up to
    # the first rejection, the run of the server's own default.
    n = plan.iterations
    options: Body = {"strategy": "pit", "scoring": "required", "max_iterations": n, "patience": n}
    return _improve(plan, pair, reference, "pit_gated", **options)


def _best_of_n(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
    options: Body = {"strategy": "best_of_n", "scoring": "required", "candidates": BEST_OF}
    # Against the response given, 0.5 chooses the best of all: no candidate must beat it by a margin.
    return _improve(plan, pair, reference, "best_of_n", **options, min_win_probability=0.5)


def _refiner(rubric: str) -> System:
    def ask(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
        options: Body = {
            "strategy": "self_refine",
            "scoring": "off",
            "max_iterations": plan.self_refine_iterations,
        }
        return _improve(plan, pair, reference, self_refine(rubric), rubric=rubric, **options)

    return ask


def scored_order(pair: PreferencePair) -> tuple[str, str]:
    """Candidate and baseline of the held-out score: half of the pairs, by a hash of the id, put y_w first.

    Were it always first, the label would say "better" every time and calibration could not be measured.
    """
    first = hashlib.sha256(pair.id.encode()).digest()[0] % 2 == 0
    return (pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)


def _score(plan: Plan, pair: PreferencePair, reference: str) -> tuple[str, Body]:
    candidate, baseline = scored_order(pair)
    return "/v1/score", {"messages": list(pair.prompt), "candidate": candidate, "baseline": baseline}


def summarize(system: str, answer: Body, seconds: float) -> Body:
    """What is kept of an answer: texts, verdicts and tokens."""
    if system == "score":
        return {"gap": answer["gap"], "win_probability": answer["win_probability"], "seconds": seconds}
    if system == "original":
        choice, usage = answer["choices"][0], answer["usage"]
        finish = choice["finish_reason"]
        tokens = _tokens(usage) | {"cached": usage["prompt_tokens_details"]["cached_tokens"]}
        return {
            "text": choice["message"]["content"],
            "finish_reason": finish,
            "tokens": tokens,
            "seconds": seconds,
        }
    kept = ("index", "text", "gap", "win_probability", "accepted", "finish_reason", "ms")
    iterations = [
        {key: iteration[key] for key in kept}
        | {
            "tokens": _tokens(iteration["usage"])
            | {"cached": iteration["usage"]["cached_tokens"], "score": iteration["score_tokens"]}
        }
        for iteration in answer["iterations"]
    ]
    usage = answer["usage"]
    return {
        "reference": answer["reference"],
        "text": answer["response"],
        "iterations": iterations,
        "stop_reason": answer["stop_reason"],
        "tokens": _tokens(usage["improve"]) | {"score": usage["score"]["prompt_tokens"]},
        "seconds": seconds,
    }


def _tokens(usage: Body) -> dict[str, int]:
    return {"prompt": usage["prompt_tokens"], "completion": usage["completion_tokens"]}


async def ask_all(
    client: Client,
    plan: Plan,
    pair: PreferencePair,
    known: dict[str, Body],
    keep: Callable[[str, Body], None],
) -> None:
    """Ask every system about one example, except those that `known` holds; `keep` gets each new record.

    A refused request (its conversation is too long, say) is a record too, `{"refused": reason}`, and so is
    an empty answer of the policy: there is nothing to improve in it. Raises what `Client.post` raises
    otherwise.
    """
    for system, request in plan.systems().items():
        if system in known:
            continue
        reference = pair.rejected if plan.from_draft else str(known.get("original", {}).get("text", ""))
        if system not in ("original", "score") and not reference.strip():
            record: Body = {"refused": "the policy's answer is empty"}
        else:
            record = await ask_one(client, system, *request(plan, pair, reference))
        known[system] = record
        keep(system, record)


async def ask_one(client: Client, system: str, route: str, body: Body) -> Body:
    """What is kept of one answer (`summarize`), or `{"refused": reason}`. Raises as `Client.post` does."""
    started = time.perf_counter()
    try:
        answer = await client.post(route, body)
    except CallFailed as error:
        if error.refused:
            return {"refused": str(error)}
        raise
    return summarize(system, answer, round(time.perf_counter() - started, 3))
