"""The real `openai` client, sync and async, on files and batches over a socket."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from app.main import create_app
from app.settings import Settings
from tests.app.batching import IMPROVE, MESSAGES, jsonl, line
from tests.app.fakes import factory_of
from tests.app.test_api import longer_is_better

CHAT = {"model": "policy", "messages": MESSAGES, "seed": 1}
IMPROVEMENTS: Any = "/v1/improve"
"""An endpoint that OpenAI's types do not know; their client sends it."""


@pytest.fixture(scope="module")
async def base_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str, None]:
    folder: Path = tmp_path_factory.mktemp("store")
    app = create_app(Settings(database=f"sqlite:///{folder}/pit.db"), factory_of(longer_is_better()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await asyncio.wait_for(app.state.runtime.settled.wait(), 30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        await task


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(20):
        while not (batch := await client.batches.retrieve(batch_id)).status.startswith(
            ("completed", "failed", "expired", "cancelled")
        ):
            await asyncio.sleep(0.02)
    return batch


async def test_the_asynchronous_client(base_url: str) -> None:
    """Upload, batch, results, lists, deletion: every field is what OpenAI's types say."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        content = jsonl([line("a"), line("b", **(IMPROVE | {"max_iterations": 0}))])
        expiry: Any = {"anchor": "created_at", "seconds": 3600}
        file = await client.files.create(
            file=("in.jsonl", content), purpose="batch", expires_after=expiry
        )
        assert (file.object, file.bytes, file.purpose) == ("file", len(content), "batch")
        assert file.expires_at == pytest.approx(file.created_at + 3600, abs=1)
        assert (await client.files.retrieve(file.id)).filename == "in.jsonl"
        assert (await client.files.content(file.id)).content == content
        batch = await client.batches.create(
            input_file_id=file.id,
            endpoint=IMPROVEMENTS,
            completion_window="24h",
            metadata={"a": "b"},
            output_expires_after=expiry,
        )
        assert (batch.status, batch.metadata) == ("validating", {"a": "b"})
        batch = await ended(client, batch.id)
        assert batch.status == "completed"
        assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
        output = json.loads((await client.files.content(batch.output_file_id)).text)
        assert output["response"]["body"]["object"] == "improvement"
        errors = json.loads((await client.files.content(batch.error_file_id)).text)
        assert errors["response"]["body"]["error"]["param"] == "max_iterations"
        listed = [one.id async for one in client.files.list(limit=1, order="asc")]
        assert listed == [file.id, batch.output_file_id, batch.error_file_id]
        assert [one.id async for one in client.files.list(purpose="batch_output")] == listed[:0:-1]
        assert [one.id async for one in client.batches.list(limit=1)] == [batch.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError) as missing:
            await client.files.retrieve(file.id)
        assert missing.value.code == "file_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.cancel(batch.id)
        assert refused.value.code == "batch_has_ended"
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=b"{}", purpose="assistants")


async def test_a_bad_file_and_a_cancelled_batch(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        file = await client.files.create(file=b"{", purpose="batch")
        made = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = await ended(client, made.id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "invalid_json_line")
        assert (batch.errors.data[0].line, batch.output_file_id) == (1, None)
        file = await client.files.create(file=jsonl([line(str(n)) for n in range(500)]), purpose="batch")
        made = await client.batches.create(
            input_file_id=file.id, endpoint=IMPROVEMENTS, completion_window="24h"
        )
        assert (await client.batches.cancel(made.id)).status in ("cancelling", "cancelled")
        assert (await ended(client, made.id)).status == "cancelled"


async def test_the_synchronous_client(base_url: str) -> None:
    def work() -> Any:
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            chat = "/v1/chat/completions"
            lines = jsonl([line(f"n{n}", chat, **CHAT) for n in range(3)])
            file = client.files.create(file=io.BytesIO(lines), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in ("completed", "failed"):
                batch = client.batches.retrieve(batch.id)
            assert batch.output_file_id
            text = client.files.content(batch.output_file_id).text
            found = [json.loads(one) for one in text.splitlines()]
            return found, client.chat.completions.create(**CHAT).choices[0].message.content  # type: ignore[call-overload]

    found, online = await asyncio.to_thread(work)
    assert [one["custom_id"] for one in found] == ["n0", "n1", "n2"]
    for one in found:
        parsed = openai.types.chat.ChatCompletion.model_validate(one["response"]["body"])
        assert parsed.choices[0].message.content == online
