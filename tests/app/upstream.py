"""A fake upstream server that fails on demand: a few answers of OpenAI's and vLLM's API."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.ports import free_port

Body = dict[str, Any]
JSON = b"application/json"
SSE = b"text/event-stream"


def chunk(text: str = "", finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **extra}).encode() + b"\n\n"


@dataclass
class FakeUpstream:
    """`behave` may answer a request itself: it gets the writer and the number of the request, and says
    whether it did."""

    words: tuple[str, ...] = ("It", " is", " red")
    usage: Body = field(default_factory=lambda: {"prompt_tokens": 9, "completion_tokens": 4})
    health: int = 200
    missing: tuple[str, ...] = ("/tokenize",)
    context: int | None = 256
    behave: Callable[["FakeUpstream", asyncio.StreamWriter, int], Awaitable[bool]] | None = None
    url: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)
    closed_early: int = 0

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncGenerator["FakeUpstream", None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                _, path, _ = head.split(b" ", 2)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                raw = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
                self.headers.append(head)
                await self._answer(path.decode(), json.loads(raw) if raw else {}, writer)
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            self.closed_early += 1
        finally:
            writer.close()

    async def _answer(self, path: str, body: Body, writer: asyncio.StreamWriter) -> None:
        self.seen[path] += 1
        if path == "/health":
            await reply(writer, self.health, b"{}")
        elif path in self.missing:
            await reply(writer, 404, b"{}")
        elif path == "/v1/models":
            card = {"id": "fake", "max_model_len": self.context}
            await reply(writer, 200, json.dumps({"data": [card]}).encode())
        elif self.behave and await self.behave(self, writer, self.seen[path]):
            return
        elif path == "/v1/chat/completions":
            self.bodies.append(body)
            pieces = [chunk(word) for word in self.words] + [chunk(finish="stop")]
            pieces += [b"data: " + json.dumps({"choices": [], "usage": self.usage}).encode() + b"\n\n"]
            await stream(writer, [*pieces, b"data: [DONE]\n\n"])
        elif path == "/classify":
            self.bodies.append(body)
            answer = {"data": [{"probs": [1.5]}], "usage": {"prompt_tokens": 7}}
            await reply(writer, 200, json.dumps(answer).encode())
        else:
            await reply(writer, 404, b"{}")


async def reply(
    writer: asyncio.StreamWriter, status: int, body: bytes, *headers: bytes, kind: bytes = JSON
) -> None:
    lines = [b"HTTP/1.1 %d X" % status, b"content-type: " + kind, b"content-length: %d" % len(body), *headers]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    await writer.drain()


async def stream(
    writer: asyncio.StreamWriter, pieces: list[bytes], *, end: bool = True, pause_s: float = 0.0
) -> None:
    """Pieces of a chunked body; without `end` the connection is cut in the middle."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + SSE + b"\r\ntransfer-encoding: chunked\r\n\r\n")
    for piece in pieces:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(pause_s)
    if end:
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    else:
        writer.close()


def free_address() -> str:
    """Where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"
