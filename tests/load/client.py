"""The users of a measurement, in a process of their own: a `Load` as JSON on standard input, figures out.

python -m tests.load.client URL KIND
"""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

import httpx

from app.bench import Figures, Kind, Load, measure


async def users(url: str, load: Load, kind: Kind) -> Figures:
    limits = httpx.Limits(max_connections=load.concurrency, max_keepalive_connections=load.concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=load.timeout_s) as http:
        return await measure(http, load, kind)


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    load = Load(**given | {"questions": tuple(given["questions"])})
    kind: Any = sys.argv[2]
    print(json.dumps(asdict(asyncio.run(users(sys.argv[1], load, kind)))))


if __name__ == "__main__":
    main()
