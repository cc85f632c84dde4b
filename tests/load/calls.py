"""Generation calls to vLLM's own servers, from a process of its own: chains of calls as JSON on standard
input, figures out.

    python -m tests.load.calls < {"users": 32, "chains": [[{"url": ..., "body": {...}}, ...], ...]}

Each user takes a chain and makes its calls one after the other.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx


async def drive(chains: list[list[dict[str, Any]]], users: int) -> dict[str, float]:
    """Seconds and tokens of all calls. Raises `httpx.HTTPError` for any that fails."""
    waiting: Iterator[list[dict[str, Any]]] = iter(chains)
    tokens = 0

    async def user(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        for chain in waiting:
            for call in chain:
                answer = await http.post(call["url"], json=call["body"])
                tokens += answer.raise_for_status().json()["usage"]["completion_tokens"]

    limits = httpx.Limits(max_connections=2 * users, max_keepalive_connections=2 * users)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as http:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user(http))
        return {"seconds": time.perf_counter() - started, "tokens": tokens}


def main() -> None:
    given = json.load(sys.stdin)
    print(json.dumps(asyncio.run(drive(given["chains"], given["users"]))))


if __name__ == "__main__":
    main()
