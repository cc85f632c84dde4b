"""No key is in logs, metrics, spans or answers (row 14 of the table of faults): good ones, and what was sent
as one."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from app.settings import Settings
from app.tracing import OpenTelemetryTracer
from tests.app.conftest import Serve
from tests.app.test_api import BODY
from tests.app.test_canary import MODELS, lines
from tests.faults.figures import Figure, say
from tests.security.conftest import add_key, bearer, id_of, revoke_key, unknown_key

__all__ = ["lines"]


@pytest.mark.parametrize("lines", ["text", "json"], indirect=True)
@pytest.mark.parametrize("models", ["well", "engine fails", "prompt fails"])
async def test_no_key_is_shown_anywhere(
    serve: Serve, sqlite: str, quick: None, lines: Callable[[], str], models: str,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    good, chat, revoked = await add_key(sqlite, "admin"), await add_key(sqlite, "chat"), await add_key(sqlite)
    expired, unknown, given = await add_key(sqlite, expires_in=-1), unknown_key(), unknown_key()
    await revoke_key(sqlite, revoked)
    exporter = InMemorySpanExporter()
    client = await serve(MODELS[models](), database=sqlite, api_keys=f"ops {given} improve chat")
    client.app.state.telemetry.tracer = OpenTelemetryTracer(Settings(), SimpleSpanProcessor(exporter))
    answers: list[Any] = []
    keys = (good, chat, revoked, expired, unknown, given)
    for key in keys:
        for headers in (bearer(key), {"authorization": key}, {"authorization": f"Basic {key}"}):
            answers.append(await client.post("/v1/improve", json=BODY, headers=headers))
            answers.append(await client.post("/v1/improve", json=BODY | {"stream": True}, headers=headers))
            answers.append(await client.get("/v1/nothing", headers=headers))
            answers.append(await client.get("/metrics", headers=headers))
            answers.append(await client.get("/health/ready", headers=headers))
    rows = client.app.state.keys._table.rows

    async def broken() -> Any:
        await rows()
        raise ValueError(f"cannot read {unknown}")

    monkeypatch.setattr(client.app.state.keys._table, "rows", broken)
    answers.append(await client.get("/v1/models", headers=bearer(unknown)))
    await asyncio.sleep(0)
    statuses = {answer.status_code for answer in answers}
    assert {200, 401, 403, 404, 503} <= statuses
    assert (500 in statuses) == (models != "well")
    shown = {
        "logs": lines(),
        "metrics": (await client.get("/metrics", headers=bearer(good))).text,
        "spans": "".join(span.to_json() for span in exporter.get_finished_spans()),
        "answers": "".join(str(answer.headers) + answer.text for answer in answers),
    }
    assert f"key={id_of(good)}" in shown["logs"] or f'"key":"{id_of(good)}"' in shown["logs"]
    assert "ValueError" in shown["logs"]
    assert 'pit_key_refusals_total{reason="revoked"}' in shown["metrics"]
    assert "pit.request.id" in shown["spans"]
    forms = [form for key in keys for form in forms_of(key)]
    hits = [(where, form) for where, text in shown.items() for form in forms if form in text]
    assert hits == []
    form = request.node.callspec.params["lines"]
    what = f"keys in logs ({form}), metrics, spans and answers, {models}"
    measured = f"{len(hits)} hits of {len(keys)} keys in {len(answers)} answers"
    say(Figure(14, what, measured, "0 hits", not hits))


def forms_of(key: str) -> tuple[str, ...]:
    """The secret, whole and in pieces, and its digest."""
    secret = key.rpartition("_")[2]
    return key, secret, secret[:16], secret[-16:], hashlib.sha256(secret.encode()).hexdigest()


@pytest.mark.parametrize("lines", ["text"], indirect=True)
async def test_a_key_would_be_found(lines: Callable[[], str]) -> None:
    import logging

    key = unknown_key()
    logging.getLogger("app.keys").debug("a key: %s", key)
    assert all(form in lines() for form in forms_of(key)[:4])
