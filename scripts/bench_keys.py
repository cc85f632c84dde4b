"""What the check of an API key costs: microseconds a request, with the keys in memory, and milliseconds for a
reading of the table.

    python scripts/bench_keys.py [--keys 1000]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable

from app.keys import KeyRing
from app.security import new_key
from app.settings import Settings
from app.store.database import Database
from app.store.keys import KeyTable
from app.telemetry import Telemetry

CHECKS = 20_000
ROUNDS = 7
HEADERS = [
    (b"host", b"127.0.0.1:8000"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip"),
    (b"connection", b"keep-alive"), (b"user-agent", b"bench"), (b"content-type", b"application/json"),
    (b"content-length", b"120"),
]  # fmt: skip


async def per_request(check: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of CPU time, the median round's."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CHECKS):
            await check()
        rounds.append(1e6 * (time.process_time() - began) / CHECKS)
    return sorted(rounds)[ROUNDS // 2]


async def measure(url: str, number: int) -> None:
    database = Database(url)
    await database.open()
    table, key = KeyTable(database), ""
    for _ in range(number):
        key, stored = new_key("bench")
        await table.add(stored)
    ring = KeyRing(Settings(database=url), database, Telemetry())
    await ring.start()
    ring.settle()
    none = KeyRing(Settings(database="none"), None, Telemetry())
    request = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    keyed = request | {"headers": [*HEADERS, (b"authorization", b"Bearer " + key.encode())]}
    keyless = request | {"headers": HEADERS}
    print(f"a good key, {number} keys in memory: {await per_request(lambda: ring.admit(keyed)):.1f} µs")
    print(f"a server without keys: {await per_request(lambda: none.admit(keyless)):.1f} µs")
    await ring.stop()
    print(f"reading {number} keys, none changed: {await reading(ring):.1f} ms")
    await table.revoke(stored.id)
    print(f"reading {number} keys, one changed: {await reading(ring):.1f} ms")
    ring._rows = []
    print(f"reading {number} keys, the first time: {await reading(ring):.1f} ms")
    await database.close()


async def reading(ring: KeyRing) -> float:
    """Milliseconds of CPU time."""
    began = time.process_time()
    await ring._look()
    return 1000 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(measure(f"sqlite:///{place}/pit.db", options.keys))


if __name__ == "__main__":
    main()
