"""Nothing of a batch's file is in logs and metrics, whatever fails."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.app.batching import jsonl, line, submit, until
from tests.app.conftest import Serve
from tests.app.test_canary import CANARY, IMPROVE, MODELS
from tests.app.test_canary import lines as lines


@pytest.mark.parametrize("lines", ["text"], indirect=True)
@pytest.mark.parametrize("models", ["well", "engine fails", "scorer fails"])
async def test_no_canary_of_a_batch(
    serve: Serve, lines: Callable[[], str], models: str, tmp_path: Any
) -> None:
    client = await serve(MODELS[models](), database=f"sqlite:///{tmp_path}/pit.db", access_log=True)
    bodies: list[dict[str, Any]] = [IMPROVE, IMPROVE | {CANARY: 1}]
    good = jsonl([line(f"{CANARY}{n}", **body) for n, body in enumerate(bodies)])
    for content in (good, CANARY.encode(), jsonl([line(CANARY) | {CANARY: CANARY}])):
        batch = await until(client, (await submit(client, content))["id"])
        assert batch["status"] == ("completed" if content == good else "failed")
        if content == good:
            assert batch["request_counts"]["failed"] == (1 if models == "well" else 2)
    await client.get(f"/v1/files/{CANARY}")
    form: Any = {CANARY: (None, CANARY), "file": (CANARY, CANARY.encode())}
    await client.post("/v1/files", files=form)
    metrics = (await client.get("/metrics")).text
    written = lines()
    assert "/v1/batches" in written
    for where, text in (("logs", written), ("metrics", metrics)):
        assert CANARY not in text.lower(), f"{where}: {text[max(0, text.lower().find(CANARY) - 300):][:600]}"
