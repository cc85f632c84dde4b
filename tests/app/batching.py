"""What the tests of batches share: an input file's lines, a batch from its file to its end."""

import asyncio
import json
from typing import Any

import httpx

MESSAGES = [{"role": "user", "content": "What is the price ?"}]
IMPROVE: dict[str, Any] = {"messages": MESSAGES, "reference": "no", "seed": 3, "max_iterations": 2}
ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, url: str = "/v1/improve", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or IMPROVE}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


async def submit(client: httpx.AsyncClient, content: bytes, endpoint: str = "/v1/improve") -> dict[str, Any]:
    form: Any = {"purpose": (None, "batch"), "file": ("input.jsonl", content)}
    uploaded = await client.post("/v1/files", files=form)
    assert uploaded.status_code == 200, uploaded.text
    body = {"input_file_id": uploaded.json()["id"], "endpoint": endpoint, "completion_window": "24h"}
    made = await client.post("/v1/batches", json=body)
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()
    return found


async def until(client: httpx.AsyncClient, batch_id: str, *states: str, timeout_s: float = 20) -> Any:
    """The batch once it has one of these states; any end without them."""
    async with asyncio.timeout(timeout_s):
        while (batch := (await client.get(f"/v1/batches/{batch_id}")).json())["status"] not in (
            states or ENDED
        ):
            await asyncio.sleep(0.02)
    return batch


async def lines_of(client: httpx.AsyncClient, file_id: str | None) -> dict[str, Any]:
    """The lines of a result file by their custom_id, each of which is there once."""
    if file_id is None:
        return {}
    answer = await client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    found = [json.loads(text) for text in answer.text.splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


async def results(client: httpx.AsyncClient, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lines of the output file, and those of the error file."""
    return await lines_of(client, batch["output_file_id"]), await lines_of(client, batch["error_file_id"])
