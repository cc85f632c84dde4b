"""A batch over real vLLM, through the real `openai` client: the same answers as the routes give."""

import asyncio
import json
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.engine
MESSAGES = [{"role": "user", "content": "What is the price of the lamp?"}]
IMPROVE: dict[str, Any] = {"messages": MESSAGES, "reference": "It is red.", "seed": 1, "max_iterations": 2}


async def test_a_batch_of_improvements(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        bodies = [IMPROVE, IMPROVE | {"reference": None}, IMPROVE | {"max_iterations": 0}]
        lines = [
            {"custom_id": f"n{n}", "method": "POST", "url": "/v1/improve", "body": body}
            for n, body in enumerate(bodies)
        ]
        file = await client.files.create(
            file="\n".join(map(json.dumps, lines)).encode(), purpose="batch"
        )
        endpoint: Any = "/v1/improve"
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h"
        )
        async with asyncio.timeout(60):
            while batch.status != "completed":
                await asyncio.sleep(0.05)
                batch = await client.batches.retrieve(batch.id)
        assert batch.output_file_id and batch.error_file_id
        found = [
            json.loads(text)
            for name in (batch.output_file_id, batch.error_file_id)
            for text in (await client.files.content(name)).text.splitlines()
        ]
        assert [(one["custom_id"], one["response"]["status_code"]) for one in found] == [
            ("n0", 200), ("n1", 200), ("n2", 400),
        ]  # fmt: skip
        for one, body in zip(found[:2], bodies[:2], strict=True):
            online: Any = await client.post("/improve", body=body, cast_to=object)
            batched = one["response"]["body"]
            assert batched["reference"] == online["reference"]
            assert [i["text"] for i in batched["iterations"]] == [i["text"] for i in online["iterations"]]
