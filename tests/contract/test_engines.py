"""What `Engine` and `Scorer` promise, asserted on the fakes of the fast tests and on the real ones alike."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from app.engines.base import Comparison, Delta, Engine, Message, Sampling, Scorer
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.errors import ContextTooLong, EngineFailed
from tests.app.fakes import FakeEngine, FakeScorer

CHAT: list[Message] = [{"role": "user", "content": "What is the price of the lamp?"}]
BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.engine)]


@pytest.fixture(params=BOTH)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return FakeEngine(delay_s=0.001)
    found: Engine = request.getfixturevalue("real_engine")
    return found


@pytest.fixture(params=BOTH)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    if request.param == "fake":
        return FakeScorer(context_length=256)
    found: Scorer = request.getfixturevalue("real_scorer")
    return found


async def generate(engine: Engine, messages: Sequence[Message] = CHAT, **sampling: Any) -> list[Delta]:
    prompt = await engine.prepare(messages)
    wanted = Sampling(**{"max_tokens": 8, "seed": 1, **sampling})
    async with aclosing(engine.generate(prompt, wanted)) as deltas:
        return [delta async for delta in deltas]


async def ids_of(engine: Engine) -> list[int]:
    content = (await engine.prepare(CHAT)).content
    assert isinstance(content, list)
    return content


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_the_last_delta_and_only_it_has_the_finish_reason(engine: Engine) -> None:
    for seed in range(6):
        deltas = await generate(engine, seed=seed)
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason in ("stop", "length")
        tokens = sum(d.tokens for d in deltas)
        assert 1 <= tokens <= 8
        if deltas[-1].finish_reason == "length":
            assert tokens == 8


async def test_one_token_can_be_asked_for(engine: Engine) -> None:
    assert sum(d.tokens for d in await generate(engine, max_tokens=1)) == 1


async def test_a_seed_decides_the_text(engine: Engine) -> None:
    texts = [text_of(await generate(engine, seed=seed)) for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


async def test_a_seed_decides_the_text_among_others_too(engine: Engine) -> None:
    """Other requests in the same batch change nothing."""
    alone = text_of(await generate(engine, seed=4))
    crowd = await asyncio.gather(*(generate(engine, seed=seed) for seed in range(12)))
    assert text_of(crowd[4]) == alone


async def test_temperature_zero_ignores_the_seed(engine: Engine) -> None:
    assert len({text_of(await generate(engine, temperature=0.0, seed=seed)) for seed in (1, 2)}) == 1


async def test_a_stop_text_ends_the_response_and_is_not_part_of_it(engine: Engine) -> None:
    whole = text_of(await generate(engine, max_tokens=12))
    word = whole[3:6]
    deltas = await generate(engine, max_tokens=12, stop=(word,))
    assert word not in text_of(deltas)
    assert deltas[-1].finish_reason == "stop"


async def test_a_longer_chat_has_more_tokens(engine: Engine) -> None:
    longer: list[Message] = [
        *CHAT,
        {"role": "assistant", "content": "24"},
        {"role": "user", "content": "Improve it."},
    ]
    longer_tokens, tokens = [(await engine.prepare(chat)).tokens for chat in (longer, CHAT)]
    assert longer_tokens is not None and tokens is not None and longer_tokens > tokens
    assert await engine.prepare(CHAT) == await engine.prepare(CHAT)


async def test_logprobs_are_one_for_each_token(engine: Engine) -> None:
    logprobs = await engine.logprobs(await ids_of(engine), [10, 11, 12])
    assert len(logprobs) == 3
    assert all(value < 0 for value in logprobs)


async def test_closing_the_generator_aborts_within_a_second(engine: Engine) -> None:
    """This is what a client's disconnect does to the engine."""
    for read in (0, 1, 3):
        prompt = await engine.prepare(CHAT)
        stream = engine.generate(prompt, Sampling(max_tokens=200, temperature=1.0, seed=7))
        for _ in range(read):
            await anext(stream)
        started = time.monotonic()
        await stream.aclose()
        await wait_until_idle(engine)
        assert time.monotonic() - started < 1


async def test_cancelling_the_reader_aborts_within_a_second(engine: Engine) -> None:
    async def read() -> None:
        await generate(engine, max_tokens=200, seed=8, temperature=2.0)

    task = asyncio.create_task(read())
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(1):
        await wait_until_idle(engine)


async def wait_until_idle(engine: Engine) -> None:
    async with asyncio.timeout(5):
        while running(engine):
            await asyncio.sleep(0.01)


def running(engine: Engine) -> int:
    if isinstance(engine, FakeEngine):
        return engine.running
    assert isinstance(engine, VllmEngine)
    return int(engine._llm.get_num_unfinished_requests())


async def test_a_closed_engine_says_so(request: pytest.FixtureRequest) -> None:
    """The real engine's half of this is in test_start.py, where an engine may be closed."""
    fake = FakeEngine()
    await fake.close()
    with pytest.raises(EngineFailed):
        await fake.check_health()
    with pytest.raises(EngineFailed):
        await generate(fake)


@pytest.mark.engine
async def test_pieces_of_many_tokens_are_the_same_text(real_engine: VllmEngine) -> None:
    """The first token alone, then eight at a time; nothing of the text or the count is lost."""
    alone = await generate(real_engine, max_tokens=40, seed=3, temperature=1.5)
    pieces = await generate(real_engine, max_tokens=40, seed=3, temperature=1.5, stream_interval=8)
    assert text_of(pieces) == text_of(alone)
    count = sum(delta.tokens for delta in alone)
    assert sum(delta.tokens for delta in pieces) == count
    assert pieces[0].tokens == 1
    assert len(pieces) <= 2 + count // 8
    assert pieces[-1].finish_reason == alone[-1].finish_reason


@pytest.mark.engine
async def test_special_tokens_are_counted_and_not_shown(real_engine: VllmEngine) -> None:
    """A random model ends at some point: its end token is a token, and no text."""
    for seed in range(60):
        deltas = await generate(real_engine, max_tokens=200, seed=seed, temperature=2.0)
        assert "<|" not in text_of(deltas)
        if deltas[-1].finish_reason == "stop":
            return
    pytest.fail("no response ended by itself")


@pytest.mark.engine
async def test_the_prefix_cache_holds_what_was_read_before(real_engine: VllmEngine) -> None:
    long: list[Message] = [{"role": "user", "content": "the price and the color of the lamp " * 9}]
    await generate(real_engine, long)
    again = await generate(real_engine, long)
    assert again[0].cached_tokens >= 32


def comparison(candidate: str, baseline: str) -> Comparison:
    return Comparison(tuple(CHAT), candidate, baseline)


async def test_scores_come_in_the_order_of_the_questions(scorer: Scorer) -> None:
    """A batch is sorted by length inside; alone or in a batch, a comparison has one score."""
    texts = ["No.", "The price of the lamp is 24.", "It is red", "Hello! " * 8, "24"]
    asked = [comparison(text, "No.") for text in texts]
    together = await scorer.score(asked)
    alone = [(await scorer.score([one])).values[0] for one in asked]
    assert together.values == pytest.approx(alone, abs=1e-5)
    assert len(set(together.values)) > 1
    assert together.tokens == sum([len(await scorer.encode(one)) for one in asked])


async def test_a_comparison_that_is_too_long_is_refused(scorer: Scorer) -> None:
    with pytest.raises(ContextTooLong):
        await scorer.score([comparison("word " * 300, "No.")])


@pytest.mark.engine
async def test_scoring_has_a_deadline(
    real_scorer: TransformersScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.errors import ScoringUnavailable

    def slow(rows: list[list[int]]) -> list[float]:
        time.sleep(0.4)
        return [0.0 for _ in rows]

    monkeypatch.setattr(real_scorer, "_forward", slow)
    monkeypatch.setattr(real_scorer, "_timeout_s", 0.1)
    with pytest.raises(ScoringUnavailable):
        await real_scorer.score([comparison("a", "b")])
