"""The LLM judge asks the project's own server over real vLLM: verdicts, unreadable ones, refusals, and
nothing a second time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from training.data import Message, PreferencePair
from training.judges import Contest
from training.judges.llm import LlmJudge
from training.judges.settings import LlmSettings

pytestmark = pytest.mark.engine
VERDICTS = {"type": "string", "enum": ["Verdict: A", "Verdict: B", "Verdict: tie"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": VERDICTS, "strict": True}}


def contests() -> list[Contest]:
    prompt = (Message(role="user", content="The price?"),)
    example = PreferencePair("x", prompt, "It is 24.", "No.", "test")
    return [Contest(example, first, "No.") for first in ("It is 24.", "Red.", "Hello", "The lamp", "No.")]


async def test_a_real_model_judges(url: str, tmp_path: Path) -> None:
    """A random model, held to the three verdicts by structured output: each contest is decided, from two
    answers that are kept."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{conversation} A: {first} B: {second}")

    def judge(**changes: Any) -> LlmJudge:
        given = {"prompt": prompt, "max_tokens": 24, "extra": {"response_format": FORMAT}, **changes}
        settings = LlmSettings(url=f"{url}/v1", model="policy", **given)
        return LlmJudge(settings, tmp_path / "cache.sqlite")

    first = judge()
    verdicts = await asyncio.to_thread(first.judge, contests())
    assert [verdict.value in (1, 0, -1) for verdict in verdicts] == [True] * 5
    assert (first.cost().calls, first.tries) == (8, 8)
    assert first.cost().prompt_tokens > 8 * 10 and first.cost().completion_tokens >= 8 * 3
    again = judge()
    assert await asyncio.to_thread(again.judge, contests()) == verdicts
    assert again.tries == 0

    free = await asyncio.to_thread(judge(extra={}, max_tokens=4).judge, contests())
    assert {verdict.reason for verdict in free} == {"unreadable verdict", "the same text"}
    # The package's own prompt has more tokens than this model can read.
    long = await asyncio.to_thread(judge(prompt=None).judge, contests())
    assert [verdict.reason for verdict in long] == ["refused"] * 4 + ["the same text"]
