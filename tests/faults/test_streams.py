"""Rows 1 and 3: many streams for long, and readers that are slow or stand still."""

import asyncio
import json
import re
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.figures import FULL, Figure, count, say
from tests.faults.server import fake_server
from tests.load.processes import Server

pytestmark = pytest.mark.slow
CANARY = re.compile(r"canary\d+-\d+")


def conversation(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"say {word}"}]


async def one_stream(http: aiohttp.ClientSession, url: str, word: str, improve: bool) -> str | None:
    """Read a stream to its end; what was wrong with it, or None."""
    body: dict[str, Any] = {"messages": conversation(word), "stream": True}
    body |= {"reference": word, "max_iterations": 1} if improve else {"model": "policy"}
    path = "/v1/improve" if improve else "/v1/chat/completions"
    try:
        async with http.post(url + path, json=body) as response:
            text = (await response.read()).decode()
    except aiohttp.ClientError as error:
        return type(error).__name__
    if response.status != 200 or '"error"' in text:
        return f"{response.status}: {text[-200:]}"
    if ("run.completed" if improve else "[DONE]") not in text:
        return "it broke off"
    found = CANARY.findall(text)
    if len(found) < 20:
        return f"only {len(found)} of its tokens"
    return None if set(found) == {word} else f"the tokens of others: {set(found) - {word}}"


def memory_mib(server: Server) -> float:
    """What the server's process alone has, in MiB."""
    return float(server.process.memory_full_info().uss / 2**20)


def growth(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, by least squares over (seconds, MiB)."""
    return 60 * statistics.linear_regression(*zip(*samples, strict=True)).slope


async def test_many_streams_for_long(tmp_path: Path) -> None:
    """Half of them runs that are stored. Each has a word of its own, which all of its tokens are."""
    streams, seconds, warm_s = count(500, 100), count(150, 12), count(30, 4)
    problems: list[str] = []
    samples: list[tuple[float, float]] = []
    done = 0
    with fake_server(tmp_path, token_ms=count(500, 100), tokens=20) as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            started = time.monotonic()

            async def user(number: int) -> None:
                nonlocal done
                turn = 0
                await asyncio.sleep(number / streams * 2)  # not all in one moment
                while time.monotonic() - started < seconds:
                    problem = await one_stream(http, server.url, f"canary{number}-{turn}", number % 2 == 0)
                    problems.extend([problem] if problem else [])
                    done, turn = done + 1, turn + 1

            users = [asyncio.create_task(user(number)) for number in range(streams)]
            while (now := time.monotonic() - started) < seconds:
                await asyncio.sleep(0.5)
                if now > warm_s:
                    samples.append((now, memory_mib(server)))
            await asyncio.gather(*users)
    print(*problems[:3], sep="\n")
    say(
        Figure(
            1,
            f"{streams} streams at a time for {seconds} s",
            f"{done} streams: {len(problems)} with an error or with another's tokens",
            "0 errors, no cross-talk",
            not problems and done >= 2 * streams,
        )
    )
    slope, grown = growth(samples), samples[-1][1] - samples[0][1]
    # In seconds a process says little about minutes: the short form only sees what grows without bound.
    say(
        Figure(
            1,
            f"memory after {warm_s} s to warm up",
            f"{slope:+.2f} MiB a minute at {samples[-1][1]:.0f} MiB" if FULL else f"{grown:+.1f} MiB in all",
            "less than 1 MB a minute" if FULL else "less than 8 MiB",
            slope < 0.95 if FULL else grown < 8,
        )
    )


class Reader:
    """A client with a small buffer, that reads as slowly as it is told to."""

    def __init__(self, port: int, body: dict[str, Any]) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self.address, self.taken, self.ended = ("127.0.0.1", port), 0, False
        content = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\n"
        self.request = f"{head}content-length: {len(content)}\r\n\r\n".encode() + content

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self.address)
        await loop.sock_sendall(self.socket, self.request)

    async def read(self, bytes_a_second: int) -> None:
        """Until it is cancelled or the stream ends."""
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self.socket, bytes_a_second):
                self.taken += len(data)
                await asyncio.sleep(1)
        except OSError:
            pass
        self.ended = True


LONG = {"model": "policy", "messages": conversation("slowly"), "stream": True, "max_tokens": 1_000_000}


async def latencies(http: aiohttp.ClientSession, url: str, seconds: float) -> list[float]:
    """Of short requests, one after another, in milliseconds."""
    found, started = [], time.monotonic()
    body = {"model": "policy", "messages": conversation("quickly"), "stream": True, "max_tokens": 10}
    while time.monotonic() - started < seconds:
        begun = time.perf_counter()
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            assert "[DONE]" in await response.text()
        found.append(1000 * (time.perf_counter() - begun))
    return found


async def in_flight(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(f"{url}/metrics") as response:
        found = re.search(r"pit_requests_in_flight (\d+)", await response.text())
    assert found is not None
    return int(found[1]) - 1


async def test_a_hundred_slow_readers(tmp_path: Path) -> None:
    """1 KB a second each, of streams that would fill any memory: what they do not take is not made."""
    seconds, number = count(60, 4), 100
    with fake_server(tmp_path, token_ms=1, tokens=20) as server:
        port = int(server.url.rpartition(":")[2])
        async with aiohttp.ClientSession() as http:
            await latencies(http, server.url, 1)
            alone = await latencies(http, server.url, seconds)
            before = memory_mib(server)
            readers = [Reader(port, LONG) for _ in range(number)]
            await asyncio.gather(*(reader.start() for reader in readers))
            reading = [asyncio.create_task(reader.read(1000)) for reader in readers]
            await asyncio.sleep(count(10, 3))  # their buffers fill
            beside = await latencies(http, server.url, seconds)
            grown = memory_mib(server) - before
            served = sum(reader.taken > 1000 and not reader.ended for reader in readers)
            for task in reading:
                task.cancel()
            for reader in readers:
                reader.socket.close()
            left = time.monotonic()
            while await in_flight(http, server.url):
                assert time.monotonic() - left < 5, "readers that have left are still served"
                await asyncio.sleep(0.05)
            after = await latencies(http, server.url, seconds)
    usual = (statistics.median(alone) + statistics.median(after)) / 2
    ratio = statistics.median(beside) / usual
    say(
        Figure(
            3,
            f"{number} readers of 1 KB/s: what waits for them",
            f"{grown / number * 1024:.0f} KiB each; all of {served} go on",
            "at most 512 KiB each",
            grown / number < 0.5 and served == number,
        )
    )
    say(
        Figure(
            3,
            "the latency of others beside them",
            f"median {statistics.median(beside):.1f} ms, {ratio:.2f} times that without them",
            "at most 1.5 times",
            ratio <= 1.5,
        )
    )


@pytest.mark.parametrize("tokens", [1_000_000, 300])
async def test_a_reader_that_stands_still_loses_its_connection(tmp_path: Path, tokens: int) -> None:
    """In the middle of its stream, and when all of it is written but not read."""
    limit_s, number = 2.0, count(100, 10)
    with fake_server(tmp_path, token_ms=1, tokens=20, write_timeout_s=limit_s, ping_interval_s=1) as server:
        port = int(server.url.rpartition(":")[2])

        def connections() -> int:
            return sum(one.laddr.port == port and bool(one.raddr) for one in server.process.net_connections())

        readers = [Reader(port, LONG | {"max_tokens": tokens}) for _ in range(number)]
        await asyncio.gather(*(reader.start() for reader in readers))
        started = time.monotonic()
        while connections() < number and time.monotonic() - started < 5:
            await asyncio.sleep(0.02)
        while (left := connections()) and time.monotonic() - started < 5 * limit_s + 5:
            await asyncio.sleep(0.05)
        took = time.monotonic() - started
        for reader in readers:
            reader.socket.close()
        async with aiohttp.ClientSession() as http:
            # A connection is gone a moment before its generation is.
            deadline = started + 4 * limit_s
            while (generating := await in_flight(http, server.url)) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
    what = "in the middle of a stream" if tokens > 1000 else "of a stream that is written"
    say(
        Figure(
            3,
            f"{number} readers that stand still {what}, at write_timeout_s {limit_s:g}",
            f"{number - left} ended, the last after {took:.1f} s; {generating} still generated for",
            "all ended, within four times the limit, and their generation too",
            not left and not generating and took < 4 * limit_s + 1,
        )
    )
