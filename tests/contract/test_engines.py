"""What `Engine` and `Scorer` promise, asserted on the fakes of the fast tests and on the real ones alike: in
this process, and upstream in vLLM's own server."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from app.engines.base import Comparison, Constraint, Delta, Engine, Message, Prompt, Sampling, Scorer
from app.engines.remote import Question, RemoteEngine
from app.engines.remote_scorer import RemoteScorer
from app.engines.transformers_scorer import TransformersScorer
from app.engines.vllm import VllmEngine
from app.errors import ContextTooLong, EngineFailed
from tests.app.fakes import FakeEngine, FakeScorer
from tests.tiny import IMPROVE_TURN

CHAT: list[Message] = [{"role": "user", "content": "What is the price of the lamp?"}]
REAL = [pytest.param(kind, marks=pytest.mark.engine) for kind in ("real", "remote")]
ALL = [pytest.param("fake"), *REAL]


@pytest.fixture(params=ALL)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return FakeEngine(delay_s=0.001)
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(params=REAL)
def vllm_engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(params=ALL)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    if request.param == "fake":
        return FakeScorer(context_length=256)
    found: Scorer = request.getfixturevalue(f"{request.param}_scorer")
    return found


async def generate(engine: Engine, messages: Sequence[Message] = CHAT, **sampling: Any) -> list[Delta]:
    prompt = await engine.prepare(messages)
    wanted = Sampling(**{"max_tokens": 8, "seed": 1, **sampling})
    async with aclosing(engine.generate(prompt, wanted)) as deltas:
        return [delta async for delta in deltas]


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
    logprobs = await engine.logprobs(await engine.token_ids(CHAT), [10, 11, 12])
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
    if isinstance(engine, RemoteEngine):
        return sum(upstream.in_flight for upstream in engine.pool.upstreams) + running_upstream(engine)
    assert isinstance(engine, VllmEngine)
    return int(engine._llm.get_num_unfinished_requests())


def running_upstream(engine: RemoteEngine) -> int:
    """What vLLM's server itself says that it works on."""
    text = httpx.get(engine.pool.upstreams[0].url + "/metrics", timeout=5).text
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([0-9.]+)$", text, re.MULTILINE)
    assert found
    return int(sum(map(float, found)))


async def test_a_closed_engine_says_so(request: pytest.FixtureRequest) -> None:
    """The real engine's half of this is in test_start.py, where an engine may be closed."""
    fake = FakeEngine()
    await fake.close()
    with pytest.raises(EngineFailed):
        await fake.check_health()
    with pytest.raises(EngineFailed):
        await generate(fake)


@pytest.mark.engine
async def test_a_burst_of_long_prompts_with_seeds_is_survived(real_engine: VllmEngine) -> None:
    """More tokens than one step reads: a prompt that is read in parts would end an engine on a CPU."""
    chat: list[Message] = [{"role": "user", "content": "What is the price of the lamp? " * 5}]
    tokens = (await real_engine.prepare(chat)).tokens
    assert tokens is not None
    burst = await asyncio.gather(*(generate(real_engine, chat, seed=n) for n in range(9000 // tokens)))
    assert all(deltas[-1].finish_reason for deltas in burst)


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


async def test_special_tokens_are_counted_and_not_shown(vllm_engine: Engine) -> None:
    """A random model ends at some point: its end token is a token, and no text."""
    for seed in range(60):
        deltas = await generate(vllm_engine, max_tokens=200, seed=seed, temperature=2.0)
        assert "<|" not in text_of(deltas)
        if deltas[-1].finish_reason == "stop":
            return
    pytest.fail("no response ended by itself")


async def test_the_prefix_cache_holds_what_was_read_before(vllm_engine: Engine) -> None:
    long: list[Message] = [{"role": "user", "content": "the price and the color of the lamp " * 9}]
    await generate(vllm_engine, long)
    again = await generate(vllm_engine, long)
    assert max(delta.cached_tokens for delta in again) >= 32


async def test_the_length_of_the_prompt_is_told_before_or_after(engine: Engine) -> None:
    """Exactly, whether it was asked for before or not."""
    exact = len(await engine.token_ids(CHAT))
    assert (await engine.prepare(CHAT)).tokens == exact
    prompt = await engine.prepare(CHAT, count=False)
    async with aclosing(engine.generate(prompt, Sampling(max_tokens=4, seed=1))) as deltas:
        told = [delta.prompt_tokens async for delta in deltas][-1]
    assert (told or prompt.tokens) == exact


@pytest.mark.engine
async def test_upstream_and_in_process_say_the_same(
    real_engine: VllmEngine, remote_engine: RemoteEngine
) -> None:
    """Greedy and seeded texts, token counts and log-probabilities of one model, twice served."""
    for sampling in ({"temperature": 0.0}, {"seed": 5}, {"seed": 6, "max_tokens": 40}):
        one, other = [await generate(engine, **sampling) for engine in (real_engine, remote_engine)]
        assert text_of(one) == text_of(other)
        assert sum(d.tokens for d in one) == sum(d.tokens for d in other)
        assert one[-1].finish_reason == other[-1].finish_reason
    ids = await real_engine.token_ids(CHAT)
    assert ids == await remote_engine.token_ids(CHAT)
    completion = [10, 11, 12]
    expected = await real_engine.logprobs(ids, completion)
    assert await remote_engine.logprobs(ids, completion) == pytest.approx(expected, abs=1e-4)


@pytest.mark.engine
async def test_an_upstream_gives_logprobs_and_keeps_to_a_schema(remote_engine: RemoteEngine) -> None:
    deltas = await generate(remote_engine, logprobs=2)
    given = [row for delta in deltas for row in delta.logprobs]
    assert len(given) == sum(delta.tokens for delta in deltas)
    assert all(row.logprob <= 0 and 2 <= len(row.top) <= 3 for row in given)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    deltas = await generate(remote_engine, max_tokens=60, constraint=Constraint(schema))
    assert isinstance(json.loads(text_of(deltas))["a"], bool)


@pytest.mark.engine
async def test_an_upstream_continues_a_text(remote_engine: RemoteEngine, real_engine: VllmEngine) -> None:
    texts = []
    for engine in (remote_engine, real_engine):
        prompt = await engine.prepare_text("The price of the lamp")
        assert prompt.tokens is not None and prompt.tokens > 3
        async with aclosing(engine.generate(prompt, Sampling(max_tokens=8, temperature=0.0))) as deltas:
            texts.append(text_of([delta async for delta in deltas]))
    assert texts[0] == texts[1]


@pytest.mark.engine
async def test_an_upstream_refuses_what_is_too_long(remote_engine: RemoteEngine) -> None:
    """A prompt that nobody counted: the upstream says it, and we in our words."""
    question = (await remote_engine.prepare(CHAT, count=False)).content
    assert isinstance(question, Question)
    long = replace(question, body={"messages": [{"role": "user", "content": "lamp " * 400}]})
    with pytest.raises(ContextTooLong, match="Shorten the messages"):
        async for _ in remote_engine.generate(Prompt(long, None), Sampling(max_tokens=8)):
            pass


async def test_a_conversation_near_the_context_is_counted(vllm_engine: Engine) -> None:
    """Or its response would not fit, and a request that could be served would fail."""
    long: list[Message] = [{"role": "user", "content": "the price and the color of the lamp " * 6}]
    assert (await vllm_engine.prepare(long, count=False)).tokens == len(await vllm_engine.token_ids(long))


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
async def test_upstream_scores_are_the_raw_logits(
    real_scorer: TransformersScorer, remote_scorer: RemoteScorer
) -> None:
    texts = ["No.", "The price of the lamp is 24.", "It is red", "Hello! " * 8]
    asked = [comparison(text, "No.") for text in texts]
    expected, found = await real_scorer.score(asked), await remote_scorer.score(asked)
    assert found.values == pytest.approx(expected.values, abs=1e-4)
    assert found.tokens == expected.tokens
    assert await remote_scorer.encode(asked[1]) == await real_scorer.encode(asked[1])
    by_pooling = RemoteScorer(
        remote_scorer.pool, remote_scorer.model_id, 256, IMPROVE_TURN, path="/pooling", timeout_s=30
    )
    assert (await by_pooling.score(asked)).values == pytest.approx(expected.values, abs=1e-4)


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
