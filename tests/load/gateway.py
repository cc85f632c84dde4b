"""What a proxied chat completion costs: the gateway, LiteLLM's proxy and optillm before one mock upstream.

CPU time of each server's whole process tree, over the requests that it answered in a round; the rounds are
interleaved. Every answer has 16 tokens, and a stream's tokens arrive one by one, 2 ms apart, so that none can
hide in the packet of another. The users, and the upstream, are processes of their own and do not count.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.bench import Kind, Load
from tests.load import peers
from tests.load.figures import Bar, Result, Spread, ratios, spread
from tests.load.inside import drive
from tests.load.processes import Server, server
from tests.ports import free_port

USERS, REQUESTS, ROUNDS = 8, 100, 5
KINDS: dict[Kind, str] = {"chat": "unary", "chat-stream": "stream of 16"}
IMPROVE_TURN = "Please improve your answer."
UPSTREAM = ("--length", "16", "--delay-ms", "10", "--token-ms", "2")


@dataclass(frozen=True)
class Contestant:
    """A server under test, and how it is asked."""

    server: Server
    model: str
    key: str | None


@contextmanager
def upstream(stack: ExitStack, output: Path, *options: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "tests.load.upstream", "--port", str(port), *options]
    yield stack.enter_context(server("upstream", command, port=port, log=output / "upstream.log"))


def start_peer(stack: ExitStack, output: Path, peer: peers.Peer, port: int) -> Contestant:
    log = output / f"{peer.name}.log"
    started = server(
        peer.name, peer.command, port=port, log=log, ready=peer.ready, env=peer.env, cwd=peer.home
    )
    return Contestant(stack.enter_context(started), peer.model, peer.key)


def start_gateway(stack: ExitStack, output: Path, upstream: str, *, bare: bool = False) -> Contestant:
    """`pit serve` without an engine: everything on that it has, or `bare`: without store, keys and limits."""
    port, pit, key = free_port(), [sys.executable, "-m", "app.cli"], None
    name, database = ("bare", "none") if bare else ("pit", f"sqlite:///{output.resolve()}/pit.db")
    command = [*pit, "serve", "--port", str(port), "--database", database]
    for role in ("policy", "improver", "gap-reward"):
        command += [f"--{role}-url", upstream]
    command += ["--improve-turn", IMPROVE_TURN]
    if not bare:
        output.mkdir(parents=True, exist_ok=True)
        create = [*pit, "keys", "create", "bench", "--database", database]
        key = subprocess.run(create, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    started = server(name, command, port=port, log=output / f"{name}.log", ready="/health/ready")
    return Contestant(stack.enter_context(started), "policy", key)


async def cost(one: Contestant, kind: Kind) -> dict[str, float]:
    """One round: CPU milliseconds a request, and what the users saw."""
    load = Load(USERS, REQUESTS, 120, 30, one.model)
    before = one.server.cpu_seconds()
    figures = await drive(one.server.url, load, kind, one.key)
    spent = one.server.cpu_seconds() - before
    return {
        "CPU ms": 1000 * spent / (REQUESTS + USERS),  # each user's first request costs too
        "p50 ms": figures["latency_ms"]["p50"],
        "p99 ms": figures["latency_ms"]["p99"],
        "requests/s": figures["requests_per_s"],
    }


Rounds = list[dict[str, float]]


async def _rounds(contestants: list[Contestant], rounds: int) -> dict[tuple[str, Kind], Rounds]:
    found: dict[tuple[str, Kind], Rounds] = {}
    for number in range(rounds + 1):
        for kind in KINDS:
            for one in contestants:
                row = await cost(one, kind)
                if number:  # the first round warms up
                    found.setdefault((one.server.name, kind), []).append(row)
    return found


def measure(output: Path, rounds: int = ROUNDS) -> Result:
    """Start all of them, let them race, compare."""
    result = Result("gateway")
    with ExitStack() as stack, upstream(stack, output, *UPSTREAM) as mock:
        contestants = [start_gateway(stack, output, mock.url)]
        for make in (peers.litellm, peers.optillm):
            port = free_port()
            contestants.append(start_peer(stack, output, make(mock.url, port), port))
        found = asyncio.run(_rounds(contestants, rounds))
        memory = {one.server.name: (one.server.memory_mib(), one.server.rss_mib()) for one in contestants}
    spreads: dict[tuple[str, Kind], Spread] = {}
    for (name, kind), rows in found.items():
        cells = {column: spread([row[column] for row in rows]) for column in rows[0]}
        spreads[name, kind] = cells["CPU ms"]
        pss, rss = memory[name]
        result.rows[f"{name}, {KINDS[kind]}"] = {**cells, "PSS MiB": pss, "RSS MiB": rss}
    for kind, limit in (("chat", 2.5), ("chat-stream", 4.0)):
        ours = spreads["pit", kind]
        result.bars.append(Bar(f"CPU ms a request, {KINDS[kind]}", ours.median, limit))
        for name, share in (("LiteLLM", 0.25), ("optillm", 0.1)):
            ratio = ratios(ours, spreads[name, kind])
            result.bars.append(Bar(f"{KINDS[kind]}, against {name}", ratio.median, share))
    result.bars.append(Bar("memory, larger of PSS and RSS, MiB", max(memory["pit"]), 200))
    return result
