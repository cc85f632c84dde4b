"""A client that goes away stops its generation, wherever the run is. Spoken in raw ASGI, where the going is
exact."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from app.improve.options import Models
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import running
from tests.app.fakes import FakeEngine, FakeScorer, factory_of, fake_models

MESSAGES = [{"role": "user", "content": "What is the price ?"}]


class Client:
    """One request, whose connection can be closed at any moment."""

    def __init__(
        self, app: FastAPI, path: str, body: dict[str, Any], *headers: tuple[bytes, bytes]
    ) -> None:
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self._body: bytes | None = json.dumps(body).encode()
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), *headers],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("s", 80),
            "client": ("c", 1),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.task = asyncio.create_task(app(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if not self.gone.is_set():
            self.sent.append(message)

    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent).decode()


def start(models: Models, **settings: Any) -> FastAPI:
    return create_app(Settings(**settings), factory_of(models))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/improve", {"reference": "no", "candidates": 3}),
        ("/v1/improve", {}),
        ("/v1/chat/completions", {"model": "policy"}),
        ("/v1/chat/completions", {"model": "pit"}),
    ],
)
@pytest.mark.parametrize("after_s", [0.0, 0.05])
async def test_a_disconnect_aborts_the_generation(
    stream: bool, path: str, extra: dict[str, Any], after_s: float
) -> None:
    """Before the first byte and in the middle, streamed and unary: within a second nothing runs any more."""
    engines = [FakeEngine(script=lambda _: "word " * 30, delay_s=0.02) for _ in range(2)]
    app = start(fake_models(policy=engines[0], improver=engines[1]))
    async with running(app) as http:
        client = Client(app, path, {"messages": MESSAGES, "stream": stream, "max_tokens": 30} | extra)
        while not any(engine.running for engine in engines):
            await asyncio.sleep(0.001)
        await asyncio.sleep(after_s)
        client.gone.set()
        async with asyncio.timeout(1):
            await client.task
        assert [engine.running for engine in engines] == [0, 0]
        assert sum(engine.aborted for engine in engines) >= 1
        metrics = (await http.get("/metrics")).text
        assert f'pit_disconnects_total{{route="{path}"}} 1.0' in metrics
        assert "pit_requests_in_flight 1.0" in metrics  # the request for the metrics itself


async def test_a_disconnect_during_scoring_ends_the_run() -> None:
    scorer = FakeScorer(delay_s=30)
    app = start(fake_models(scorer=scorer))
    async with running(app):
        client = Client(app, "/v1/improve", {"messages": MESSAGES, "reference": "no"})
        while not scorer.calls:
            await asyncio.sleep(0.001)
        client.gone.set()
        async with asyncio.timeout(1):
            await client.task


async def test_a_silent_stream_sends_comments() -> None:
    """While candidates are scored nothing is said: a proxy would cut the connection."""
    app = start(fake_models(scorer=FakeScorer(delay_s=0.5)), ping_interval_s=0.1)
    async with running(app):
        client = Client(
            app, "/v1/improve", {"messages": MESSAGES, "reference": "no", "stream": True, "seed": 1}
        )
        async with asyncio.timeout(10):
            await client.task
        assert client.text().count(": ping\n\n") >= 3
        assert client.text().count("event: run.completed") == 1
        assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
