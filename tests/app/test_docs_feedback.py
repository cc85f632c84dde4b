"""docs/feedback.md and docs/idempotency.md are true: their examples run, and they name every type."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from app.idempotency import ROUTES
from app.schemas_feedback import Comparison, Correction, Edits, Rating, Texts
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.test_store import BODY

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("feedback", "idempotency")}


@pytest.mark.parametrize("name", TEXT)
async def test_its_requests_are_accepted(serve: Serve, tmp_path: Path, name: str) -> None:
    models = fake_models(
        improver=FakeEngine(script=lambda _: "yes it is"), scorer=FakeScorer(value=lambda t: float(len(t)))
    )
    client = await serve(models, database=f"sqlite:///{tmp_path}/pit.db")
    run = (await client.post("/v1/improve", json=BODY)).json()["id"]
    examples = re.findall(r"```sh\n(curl.*?)```", TEXT[name], re.DOTALL)
    assert examples
    for example in examples:
        words = shlex.split(example.replace("imp_…", run))
        (address,) = [word for word in words if word.startswith("http://")]
        headers = dict(words[n + 1].split(": ") for n, word in enumerate(words) if word == "-H")
        body = words[words.index("-d") + 1]
        path = address.removeprefix("http://127.0.0.1:8000")
        answer = await client.post(path, content=body, headers=headers)
        assert answer.is_success, answer.text
        if name == "feedback":
            (said,) = re.findall(r"```json\n(.*?)\n```", TEXT[name], re.DOTALL)
            line = json.loads((await client.get("/v1/feedback/export")).text)
            assert shape(line) == shape(json.loads(said))


def shape(value: Any) -> Any:
    """The keys of an object, all the way down; not those of a mapping that depends on the models."""
    if isinstance(value, dict):
        return {key: key in ("models", "identities") or shape(inner) for key, inner in value.items()}
    return None


def test_it_names_every_type_and_field() -> None:
    for model in (Comparison, Edits, Rating, Correction, Texts):
        (name,) = model.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
        (row,) = re.findall(rf"^\| `{name}` \|.*$", TEXT["feedback"], re.MULTILINE)
        assert [field for field in model.model_fields if field != "type" and f"`{field}`" not in row] == []


def test_it_names_every_route() -> None:
    assert [route for route in ROUTES if f"{route}`" not in TEXT["idempotency"]] == []
