"""docs/improve.md is true: its examples run, and it names every option, event and reason."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from app.api.render import NAMES
from app.improve.events import CandidateFinish, StopReason
from app.schemas import HunkOut, Improvement, ImproveRequest, IterationOut, KeepOptions, LengthRatioOptions
from tests.app.conftest import Serve

TEXT = (Path(__file__).resolve().parents[2] / "docs/improve.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_runs(serve: Serve, example: str) -> None:
    client = await serve()
    words = shlex.split(example)
    assert words[0] == "curl"
    (address,) = [word for word in words if word.startswith("http://")]
    body = json.loads(words[words.index("-d") + 1])
    answer = await client.post(address.removeprefix("http://127.0.0.1:8000"), json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert re.findall(r"^event: (.*)$", answer.text, re.MULTILINE)[-1] == "run.completed"
    else:
        assert answer.json()["object"] == "improvement"


def test_it_names_everything() -> None:
    models = (ImproveRequest, KeepOptions, LengthRatioOptions, IterationOut, HunkOut)
    names = {name for model in models for name in model.model_fields}
    names |= {"response", "improved", "iterations", "usage", "stop_reason"} & set(Improvement.model_fields)
    names |= set(NAMES.values()) | {"run.completed", "run.failed"} | set(get_args(StopReason))
    left_out = {"ms", "accepted"}
    missing = {name for name in names - left_out if f"`{name}`" not in TEXT}
    assert missing == set()
    reasons = {reason for part in get_args(CandidateFinish) for reason in get_args(part) or (part,)}
    assert {reason for reason in reasons - {"tool_calls"} if reason not in TEXT} == set()
