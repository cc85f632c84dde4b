"""Row 10: input that is made to hurt. Raw sockets for what no HTTP client would send, hypothesis for bodies.
Each gets a 4xx in the form of every error, and the server's memory stays where it was."""

import asyncio
import json
import math
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.main import create_app
from app.settings import Settings
from tests.faults.figures import Figure, count, say
from tests.faults.server import fake_server
from tests.faults.test_streams import memory_mib
from tests.load.processes import Server

pytestmark = pytest.mark.slow
HEAD_S, BODY_S, BODY_BYTES, HEAD_BYTES, CONNECTIONS = 0.5, 0.7, 100_000, 8_000, 300
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "reference": "no"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with fake_server(
        tmp_path_factory.mktemp("hostile"), token_ms=0, tokens=4, header_timeout_s=HEAD_S,
        body_timeout_s=BODY_S, max_body_bytes=BODY_BYTES, max_header_bytes=HEAD_BYTES,
        max_connections=CONNECTIONS,
    ) as found:  # fmt: skip
        yield found


def post(*headers: str, path: str = "/v1/improve", method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} {version}", "host: s", "content-type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def sized(body: bytes | str) -> bytes:
    """A whole request."""
    content = body.encode() if isinstance(body, str) else body
    return post(f"content-length: {len(content)}") + content


def with_field(**fields: Any) -> bytes:
    return sized(json.dumps(GOOD | fields))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = post("transfer-encoding: chunked")
DEEP = "[" * 50_000
NESTED = json.loads("[" * 200 + "]" * 200)
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(154)
# What is sent, in pieces with a pause between them where it is slow; and the status that it deserves.
CASES: dict[str, tuple[list[bytes], set[int]]] = {
    "a declared body over the limit": ([post("content-length: 9999999999")], {413}),
    "a body over the limit": ([sized("x" * (BODY_BYTES + 1))], {413}),
    "a chunked body without end": ([CHUNKED, *[chunk(b"x" * 50_000)] * 8], {413}),
    "a header over the limit": ([post("x-long: " + "x" * 2 * HEAD_BYTES)], {431}),
    "a header without end": ([post()[:-2] + b"x-long: ", *[b"x" * 5_000] * 8], {431}),
    "an address over the limit": ([post(path="/" + "x" * 2 * HEAD_BYTES)], {431}),
    "two hundred headers": ([post(*[f"x-{n}: 1" for n in range(200)])], {431}),
    "slow headers": ([post()[:40], *[b"x"] * 12], {408}),
    "no end of headers": ([post()[:-2]], {408}),
    "a slow body": ([post("content-length: 900"), *[b" "] * 12], {408}),
    "a slow chunked body": ([CHUNKED, *[chunk(b" ")] * 12], {408}),
    "a negative length": ([post("content-length: -5")], {400}),
    "two lengths": ([post("content-length: 5", "content-length: 6") + b"123456"], {400}),
    "a length and chunks": ([post("content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n"], {400}),
    "a chunk of no size": ([CHUNKED + b"zz\r\nhello\r\n"], {400}),
    "no HTTP": ([b"\x00\x01\x02\x03 hello\r\n\r\n"], {400}),
    "TLS": ([TLS_HELLO], {400}),
    "HTTP/2": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], {400}),
    "a version of its own": ([post(version="HTTP/9.9")], {400}),
    "a method of its own": ([post(method="BREW")], {400}),
    "NUL in a header": ([post("x-bad: a\x00b")], {400}),
    "a folded header": ([post("x-bad: a\r\n b", "content-length: 2") + b"{}"], {400}),
    "a path that is no text": ([b"GET /\xff\xfe HTTP/1.1\r\nhost: s\r\n\r\n"], {400, 404}),
    "an upgrade": ([post("connection: upgrade", "upgrade: websocket", "sec-websocket-key: x")], {400}),
    "deep JSON": ([sized(DEEP)], {400}),
    "deep objects": ([sized('{"a":' * 15_000)], {400}),
    "deep and whole": ([sized("[" * 9_000 + "]" * 9_000)], {400}),
    "a schema that is deep": ([with_field(keep={"json_schema": {"enum": NESTED}})], {400}),
    "NaN": ([sized('{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}')], {400}),
    "infinity": ([sized('{"messages": [{"role": "user", "content": "x"}], "top_p": 1e999}')], {400}),
    "a lone surrogate": ([sized('{"messages": [{"role": "user", "content": "\\ud800"}]}')], {400}),
    "a surrogate as bytes": ([sized(b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}')], {400}),
    "NUL instead of JSON": ([sized(b"\x00" * 50)], {400}),
    "a number of 5,000 digits": ([sized('{"seed": ' + "9" * 5_000 + "}")], {400}),
    "a huge exponent": ([sized('{"seed": 1e' + "9" * 300 + "}")], {400}),
    "a negative seed": ([with_field(seed=-1)], {400}),
    "a huge seed": ([with_field(seed=2**64)], {400}),
    "minus one candidate": ([with_field(candidates=-1)], {400}),
    "a million candidates": ([with_field(candidates=10**6)], {400}),
    "a huge temperature": ([with_field(temperature=1e308)], {400}),
    "the wrong types": ([with_field(messages="hi")], {400}),
    "a message that is a number": ([with_field(messages=[7])], {400}),
    "a hundred thousand keys": ([sized(json.dumps({str(n): 1 for n in range(9_000)}))], {400}),
    "a million messages": ([sized(json.dumps({"messages": [1] * 30_000}))], {400}),
}  # fmt: skip


async def speak(server: Server, pieces: list[bytes]) -> tuple[int, dict[str, Any], float]:
    """Send the pieces, slowly where there are many of a few bytes; status, body, seconds."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    started = time.monotonic()

    async def send() -> None:
        for number, piece in enumerate(pieces):
            if number and len(piece) < 100:
                await asyncio.sleep(0.1)
            writer.write(piece)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-l")
            )
            body = json.loads(await reader.readexactly(length))
        assert "x-request-id: " in head.lower(), head
        return int(head.split()[1]), body, time.monotonic() - started
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def problem_of(status: int, body: Any, wanted: Callable[[int], bool]) -> str | None:
    if not wanted(status):
        return f"status {status}"
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return "another form of error"
    return None


async def flat(server: Server, work: Callable[[], Any], rounds: int) -> float:
    """MiB by which the server grew over the rounds, after some to warm up."""
    for _ in range(2 + rounds // 10):
        await work()
    before = memory_mib(server)
    for _ in range(rounds):
        await work()
    return memory_mib(server) - before


async def test_hostile_requests(server: Server) -> None:
    problems: set[str] = set()
    asked = 0

    async def one(name: str) -> None:
        nonlocal asked
        pieces, wanted = CASES[name]
        try:
            status, body, _ = await speak(server, pieces)
            if problem := problem_of(status, body, wanted.__contains__):
                problems.add(f"{name}: {problem}")
        except (OSError, EOFError, TimeoutError, StopIteration, ValueError) as error:
            problems.add(f"{name}: {type(error).__name__}")
        asked += 1

    async def work() -> None:
        await asyncio.gather(*map(one, CASES))

    grown = await flat(server, work, count(100, 3))
    print(*sorted(problems), sep="\n")
    say(
        Figure(
            10,
            f"{len(CASES)} kinds of hostile requests",
            f"{asked} sent, {len(problems)} kinds without a 4xx in the error shape; memory {grown:+.1f} MiB",
            "each a 4xx in the error shape; memory within 5 MiB",
            not problems and grown < 5,
        )
    )


def paths() -> list[str]:
    """Every operation that takes JSON, from the document."""
    document = create_app(Settings(database="none")).openapi()
    return [
        path
        for path, operations in document["paths"].items()
        if "application/json" in operations.get("post", {}).get("requestBody", {}).get("content", {})
    ]


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 10**400, -1, 0, 1e308, 5e-324, math.nan])
)
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["\x00", "\ud800", "\uffff", "x" * 5_000, "policy"]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)
FIELDS = st.sampled_from([
    "messages", "model", "prompt", "reference", "candidate", "baseline", "stream", "seed", "temperature",
    "top_p", "max_tokens", "stop", "n", "keep", "metadata", "logit_bias", "tools", "tool_choice",
    "response_format", "strategy", "scoring", "pit", "stream_options", "logprobs",
])  # fmt: skip
ANYTHING = st.one_of(st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3), VALUES)


@pytest.mark.parametrize("path", paths())
def test_bodies_of_any_shape(server: Server, path: str) -> None:
    """A good request with some of its fields replaced by anything, or anything in its place: never a 5xx."""
    good = GOOD | {"model": "policy", "candidate": "a", "baseline": "b", "prompt": "hi"}
    if path != "/v1/improve":
        good.pop("reference")
    sent, problems = 0, set[str]()

    with httpx.Client(base_url=server.url, timeout=20) as http:

        @settings(
            max_examples=count(1500, 40), deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(ANYTHING, st.booleans())
        def anything(body: Any, fitting: bool) -> None:
            nonlocal sent
            text = json.dumps(good | body if fitting and isinstance(body, dict) else body)
            answer = http.post(path, content=text, headers={"content-type": "application/json"})
            sent += 1
            if answer.status_code != 200 and (
                problem := problem_of(answer.status_code, answer.json(), lambda status: status < 500)
            ):
                problems.add(f"{problem}: {text[:300]}")

        anything()
        before = memory_mib(server)
        anything()
        grown = memory_mib(server) - before
    print(*list(problems)[:3], sep="\n")
    say(
        Figure(
            10,
            f"bodies of any shape to {path}",
            f"{sent} sent, {len(problems)} answered with a 5xx or another form; memory {grown:+.1f} MiB in"
            " the second half",
            "0; memory within 5 MiB",
            not problems and grown < 5,
        )
    )


async def test_more_connections_than_the_server_takes(server: Server) -> None:
    """Those beyond the limit are told so; who asks about the server is answered."""
    port = int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(post("content-length: 2") + b"{}")
            async with asyncio.timeout(20):
                await reader.readuntil(b"\r\n\r\n")  # answered, and kept open
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{server.url}/v1/improve", json=GOOD) as refused:
                assert (refused.status, refused.headers.get("connection")) == (503, "close")
                assert "retry-after" in refused.headers
                assert (await refused.json())["error"]["code"] == "too_many_connections"
            async with http.get(f"{server.url}/health/live") as live:
                assert live.status == 200
    async with aiohttp.ClientSession() as http, asyncio.timeout(5):
        while True:
            async with http.post(f"{server.url}/v1/improve", json=GOOD) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_refusal_reaches_a_client_that_is_still_sending(server: Server) -> None:
    """A connection that is closed at once loses the answer that its client has not read. What follows the
    refusal is not read for ever."""
    big = sized("x" * 20_000_000)
    status, body, _ = await speak(server, [big])
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(post("content-length: 9999999999"))
    await reader.readuntil(b"\r\n\r\n")
    started = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - started < 15:
            writer.write(b"x" * 1000)
            await writer.drain()
            await asyncio.sleep(0.02)
    writer.close()


def test_a_client_that_speaks_tls_sees_that_this_is_none(server: Server) -> None:
    context = ssl.create_default_context()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url.replace("http:", "https:"), verify=context, timeout=5)


def test_the_limits_are_the_settings(tmp_path: Path) -> None:
    """A request that fits is not refused: the limits are what they say."""
    with fake_server(tmp_path, token_ms=0, tokens=4, max_header_bytes=4_000, max_body_bytes=4_000) as server:
        for header, content, status in ((3_000, 3_000, 200), (4_000, 10, 431), (10, 4_000, 413)):
            body = GOOD | {"reference": "x" * content}
            answer = httpx.post(f"{server.url}/v1/improve", json=body, headers={"x-long": "x" * header})
            assert answer.status_code == status, answer.text
