"""The users of a measurement, in a process of their own: a `Load` as JSON on standard input, figures out.

PIT_API_KEY=KEY python -m tests.load.client URL KIND
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from app.bench import Figures, Kind, Load, connect, measure


async def users(url: str, load: Load, kind: Kind) -> Figures:
    async with connect(url, load, os.environ.get("PIT_API_KEY")) as http:
        return await measure(http, load, kind)


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    load = Load(**given | {"questions": tuple(given["questions"])})
    kind: Any = sys.argv[2]
    print(json.dumps(asdict(asyncio.run(users(sys.argv[1], load, kind)))))


if __name__ == "__main__":
    main()
