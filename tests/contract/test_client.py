"""`app.client` against the server over real vLLM: iterations streamed, a broken connection, feedback."""

import asyncio
from typing import Any

import pytest

from app.client import AsyncClient, Client, ImproveOptions, IterationAccepted, OutputDelta, RunCompleted
from tests.app.breaking import breaking

pytestmark = pytest.mark.engine
QUESTION = "What is the price of the lamp?"
OPTIONS: ImproveOptions = {"max_iterations": 2, "patience": 2, "candidates": 2, "seed": 5, "max_tokens": 12}


async def test_a_run_streamed_scored_and_judged(url: str) -> None:
    async with AsyncClient(url) as client:
        events = [event async for event in client.stream(QUESTION, "No.", **OPTIONS)]
        assert isinstance(events[-1], RunCompleted)
        answer = events[-1].improvement
        assert answer.scoring == "gap"
        for iteration in answer.iterations:
            pieces = [e for e in events if isinstance(e, OutputDelta) and e.index == iteration.index]
            chosen = "".join(e.text for e in pieces if e.candidate == iteration.candidate)
            assert chosen == iteration.text
        for event in events:
            if isinstance(event, IterationAccepted):
                score = await client.score(QUESTION, event.iteration.text, "No.")
                assert 0 <= score.win_probability <= 1
        assert (await client.run(answer.id)).result == answer
        said = await client.feedback("rating", run=answer.id, rating=3)
        assert said.run == answer.id


async def test_a_stream_that_breaks_ends_as_one_that_does_not(url: str) -> None:
    """The sync client, in a thread; the run lives on while it is away."""

    def read(address: str) -> list[tuple[Any, ...]]:
        with Client(address) as client:
            last = list(client.stream(QUESTION, "No.", **OPTIONS))[-1]
        assert isinstance(last, RunCompleted)
        return [(one.text, one.accepted) for one in last.improvement.iterations]

    with breaking(url) as torn:
        torn.allowed = [800, 700]
        broken = await asyncio.to_thread(read, torn.url)
        assert not torn.allowed and len(torn.requests) == 3
    assert broken == await asyncio.to_thread(read, url)
