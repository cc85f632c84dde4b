"""Upstreams that are dead, slow, full or broken: what is asked again, where, and what is never hidden."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import pytest

from app.checkpoint import SamplingDefaults
from app.engines.base import Comparison, Constraint, Delta, Message, Sampling, ToolCallDelta, Tools
from app.engines.breaker import Breaker
from app.engines.remote import RemoteEngine
from app.engines.remote_scorer import RemoteScorer
from app.engines.upstream import PoolLimits, UpstreamPool
from app.errors import (
    BadRequest,
    ContextTooLong,
    EngineFailed,
    Overloaded,
    ScoringUnavailable,
)
from tests.app.upstream import FakeUpstream, chunk, free_address, reply, stream
from tests.tiny import IMPROVE_TURN

CHAT: list[Message] = [{"role": "user", "content": "What color is the lamp?"}]
LIMITS = PoolLimits(
    connect_s=1, silence_s=0.3, total_s=5, retries=2, health_interval_s=0.05, breaker_failures=3,
    breaker_cooldown_s=0.2, sticky_slack=2,
)  # fmt: skip
Connect = Callable[..., Any]


@pytest.fixture
async def connect() -> AsyncGenerator[Connect, None]:
    """`engine = await connect(upstream, ...)`: an engine over running fakes; a URL may stand for one."""
    async with AsyncExitStack() as stack:

        async def start(*upstreams: FakeUpstream | str, limits: PoolLimits = LIMITS, **options: Any) -> Any:
            urls = []
            for upstream in upstreams:
                if isinstance(upstream, FakeUpstream):
                    upstream = (await stack.enter_async_context(upstream.running())).url
                urls.append(upstream)
            pool = UpstreamPool(urls, "--policy-url", limits, options.pop("key", None))
            await pool.start()
            stack.push_async_callback(pool.close)
            return RemoteEngine(pool, "fake", 256, SamplingDefaults(max_tokens=32), **options)

        yield start


async def ask(engine: RemoteEngine, messages: Sequence[Message] = CHAT, **sampling: Any) -> list[Delta]:
    prompt = await engine.prepare(messages, count=False)
    wanted = Sampling(**{"max_tokens": 8, **sampling})
    async with aclosing(engine.generate(prompt, wanted)) as deltas:
        return [delta async for delta in deltas]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_an_answer_with_its_usage(connect: Connect) -> None:
    """Pieces as they come; the last one makes the token count exact."""
    engine = await connect(FakeUpstream(), key="secret")
    deltas = await ask(engine)
    assert [d.text for d in deltas] == ["It", " is", " red", ""]
    assert sum(d.tokens for d in deltas) == 4
    assert (deltas[-1].finish_reason, deltas[-1].prompt_tokens) == ("stop", 9)


async def test_usage_may_come_with_the_last_piece(connect: Connect) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        usage = {"prompt_tokens": 9, "completion_tokens": 6}
        await stream(writer, [chunk("It is"), chunk(" red", "length", usage=usage, error=None)])
        return True

    first, last = await ask(await connect(FakeUpstream(behave=behave)))
    assert (first.tokens, last.tokens, last.text, last.finish_reason) == (1, 5, " red", "length")


async def test_what_is_sent(connect: Connect) -> None:
    """Every sampling option has its field; what was not asked for is left out."""
    upstream = FakeUpstream()
    engine = await connect(upstream, key="secret")
    await ask(engine)
    assert set(upstream.bodies[0]) == {
        "model", "messages", "max_tokens", "temperature", "top_p", "stream", "stream_options",
    }  # fmt: skip
    assert any(b"authorization: bearer secret" in head.lower() for head in upstream.headers)
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    prompt = await engine.prepare(CHAT, count=False, tools=Tools((tool,), "required"))
    sampling = Sampling(
        max_tokens=3, top_k=4, seed=0, stop=("x",), presence_penalty=0.5, frequency_penalty=-0.5,
        logit_bias={5: 1.0}, logprobs=2, constraint=Constraint({"type": "object"}), repetition_penalty=1.1,
    )  # fmt: skip
    _ = [delta async for delta in engine.generate(prompt, sampling)]
    body = upstream.bodies[1]
    assert body["tools"] == [tool] and body["tool_choice"] == "required"
    assert (body["seed"], body["stop"], body["top_k"], body["logit_bias"]) == (0, ["x"], 4, {"5": 1.0})
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.5, -0.5)
    assert body["repetition_penalty"] == 1.1


async def test_tool_calls_and_logprobs_are_read(connect: Connect) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": "{}"}}
    row = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    choices = [
        {"delta": {"content": "a"}, "logprobs": {"content": [row]}, "finish_reason": None},
        {"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"},
    ]

    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        events = [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\r\n\r\n" for choice in choices]
        # Events cut where no line ends, and comments between them.
        whole = b": ping\n\n".join(events) + b"data: [DONE]\n\n"
        await stream(writer, [whole[:31], whole[31:90], whole[90:]], pause_s=0.01)
        return True

    first, last = await ask(await connect(FakeUpstream(behave=behave)))
    assert first.logprobs[0].top == (("a", -0.5),)
    assert last.tool_calls == (ToolCallDelta(0, "{}", "c1", "look"),)
    assert last.finish_reason == "tool_calls"


async def test_a_dead_upstream_is_passed_over(connect: Connect) -> None:
    alive = FakeUpstream()
    engine = await connect(free_address(), alive)
    for _ in range(6):
        assert text_of(await ask(engine)) == "It is red"
    engine.pool.check_health()


async def test_all_dead_is_said_at_once(connect: Connect) -> None:
    """After some failures the breaker is open: an answer without an attempt. Readiness says so."""
    engine = await connect(free_address(), limits=PoolLimits(**{**_dict(LIMITS), "breaker_cooldown_s": 30}))
    with pytest.raises(EngineFailed, match="connection upstream failed"):
        await ask(engine)
    started = time.monotonic()
    with pytest.raises(Overloaded, match="No upstream answers"):
        await ask(engine)
    assert time.monotonic() - started < 1
    with pytest.raises(EngineFailed):
        await engine.check_health()


def _dict(limits: PoolLimits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.__dataclass_fields__}


async def test_503_then_fine(connect: Connect) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        if number < 3:
            await reply(writer, 503, b"busy")
        return number < 3

    upstream = FakeUpstream(behave=behave)
    engine = await connect(upstream)
    assert text_of(await ask(engine)) == "It is red"
    assert upstream.seen["/v1/chat/completions"] == 3
    assert engine.pool.retries == 2


@pytest.mark.parametrize("status", [500, 504])
async def test_a_failure_that_may_be_the_request_is_not_sent_around(connect: Connect, status: int) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await reply(writer, status, b"secret prompt")
        return True

    upstreams = [FakeUpstream(behave=behave), FakeUpstream(behave=behave)]
    engine = await connect(*upstreams)
    with pytest.raises(EngineFailed, match=f"status {status}") as error:
        await ask(engine)
    assert sum(u.seen["/v1/chat/completions"] for u in upstreams) == 1
    assert "secret" not in error.value.message


async def test_a_full_upstream_says_when_to_come_back(connect: Connect) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await reply(writer, 429, b"{}", b"retry-after: 17")
        return True

    engine = await connect(FakeUpstream(behave=behave))
    with pytest.raises(Overloaded) as error:
        await ask(engine)
    assert error.value.headers() == {"retry-after": "17"}
    assert engine.pool.upstreams[0].breaker.state == "closed"


async def test_a_stream_that_is_cut_is_an_error(connect: Connect) -> None:
    """Whether the connection breaks or ends in good order: what was read stays, and no other upstream is
    asked."""
    for end in (False, True):

        async def behave(
            _: FakeUpstream, writer: asyncio.StreamWriter, number: int, end: bool = end
        ) -> bool:
            await stream(writer, [chunk("It"), chunk(" is")], end=end, pause_s=0.01)
            return True

        upstreams = [FakeUpstream(behave=behave), FakeUpstream(behave=behave)]
        engine = await connect(*upstreams)
        read = []
        with pytest.raises(EngineFailed):
            prompt = await engine.prepare(CHAT, count=False)
            async for delta in engine.generate(prompt, Sampling(max_tokens=8)):
                read.append(delta.text)
        assert read == ["It", " is"]
        assert sum(u.seen["/v1/chat/completions"] for u in upstreams) == 1


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "boom", "code": 500}}\n\n',
        b"data: not json\n\n",
        b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n',
        b'data: {"choices": 3}\n\n',
        b"data: 3\n\n",
    ],
)
async def test_nonsense_in_a_stream_is_an_error(connect: Connect, event: bytes) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await stream(writer, [chunk("It"), event])
        return True

    with pytest.raises(EngineFailed, match="upstream"):
        await ask(await connect(FakeUpstream(behave=behave)))


async def test_a_slow_first_token_goes_elsewhere_and_has_a_deadline(connect: Connect) -> None:
    async def behave(upstream: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await asyncio.sleep(2)
        return False

    slow = FakeUpstream(behave=behave)
    engine = await connect(slow, FakeUpstream())
    for _ in range(2):
        assert text_of(await ask(engine)) == "It is red"
    alone = await connect(
        FakeUpstream(behave=behave), limits=PoolLimits(**{**_dict(LIMITS), "retries": 0})
    )
    started = time.monotonic()
    with pytest.raises(EngineFailed, match="did not answer in time"):
        await ask(alone)
    assert time.monotonic() - started < 1


async def test_silence_in_the_middle_is_an_error(connect: Connect) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await stream(writer, [chunk("It"), chunk(" is"), chunk(" red")], pause_s=0.6)
        return True

    started = time.monotonic()
    with pytest.raises(EngineFailed, match="in time"):
        await ask(await connect(FakeUpstream(behave=behave)))
    assert time.monotonic() - started < 1


async def test_leaving_closes_the_connection(connect: Connect) -> None:
    """That is how an upstream learns that nobody waits."""
    gone = asyncio.Event()

    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        try:
            await stream(writer, [chunk("word ")] * 200, pause_s=0.01)
        except ConnectionError:
            gone.set()
            raise
        return True

    engine = await connect(FakeUpstream(behave=behave))
    prompt = await engine.prepare(CHAT, count=False)
    answer = engine.generate(prompt, Sampling(max_tokens=8))
    await anext(answer)
    assert engine.pool.upstreams[0].in_flight == 1
    await answer.aclose()
    assert engine.pool.upstreams[0].in_flight == 0
    async with asyncio.timeout(1):
        await gone.wait()


async def test_a_conversation_stays_with_its_upstream(connect: Connect) -> None:
    """All turns that begin alike go to one upstream, others spread; a busy one gives way."""
    upstreams = [FakeUpstream() for _ in range(3)]
    engine = await connect(*upstreams)
    for turn in range(5):
        answer: Message = {"role": "assistant", "content": f"draft {turn}"}
        await ask(engine, [*CHAT, answer, {"role": "user", "content": "Improve it."}])
    counts = sorted(u.seen["/v1/chat/completions"] for u in upstreams)
    assert counts == [0, 0, 5]
    homes = {engine.pool.choose(f"question {number}".encode()).url for number in range(60)}
    assert len(homes) == 3
    home = engine.pool.choose(b"question")
    home.in_flight = 2
    assert engine.pool.choose(b"question") is home
    home.in_flight = 3
    assert engine.pool.choose(b"question") is not home
    home.in_flight = 0


async def test_an_unhealthy_upstream_is_left_and_taken_back(connect: Connect) -> None:
    sick, well = FakeUpstream(health=503), FakeUpstream()
    engine = await connect(sick, well)
    await until(lambda: not engine.pool.upstreams[0].healthy)
    for number in range(4):
        await ask(engine, [{"role": "user", "content": f"question {number}"}])
    assert sick.seen["/v1/chat/completions"] == 0
    sick.health = 200
    await until(lambda: engine.pool.upstreams[0].healthy)


async def test_health_is_asked_where_the_setting_says(connect: Connect) -> None:
    """Of LiteLLM's proxy `/health` may not be asked: it calls every model that it has."""
    upstream = FakeUpstream()
    await connect(upstream, limits=replace(LIMITS, health_path="/health/readiness"))
    await until(lambda: upstream.seen["/health/readiness"] > 1)
    assert upstream.seen["/health"] == 0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(3):
        while not holds():
            await asyncio.sleep(0.01)


def test_the_breaker_opens_tries_and_closes() -> None:
    now = 0.0
    breaker = Breaker(3, 10.0, lambda: now)
    for _ in range(2):
        breaker.fail()
    breaker.succeed()
    for _ in range(3):
        assert breaker.allows
        breaker.fail()
    assert (breaker.state, breaker.allows, breaker.times_opened) == ("open", False, 1)
    now = 10.0
    assert breaker.state == "half_open" and breaker.allows
    breaker.begin()
    assert not breaker.allows  # one at a time
    breaker.fail()
    now = 25.0
    assert breaker.state == "open"  # the pause has doubled
    now = 30.0
    breaker.begin()
    breaker.leave()  # its client left: another may try
    breaker.begin()
    breaker.succeed()
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "maximum context length is 9 tokens", "code": 400}}, ContextTooLong),
        ({"error": {"message": "x", "code": "context_length_exceeded"}}, ContextTooLong),
        ({"error": {"message": "your prompt was: secret", "code": 400}}, BadRequest),
        ([], BadRequest),
    ],
)
async def test_a_refused_request_is_explained_in_our_words(
    connect: Connect, body: Any, kind: type[BadRequest]
) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await reply(writer, 400, json.dumps(body).encode())
        return True

    with pytest.raises(BadRequest) as error:
        await ask(await connect(FakeUpstream(behave=behave)))
    assert type(error.value) is kind
    assert "secret" not in error.value.message


async def test_a_refused_key_names_the_setting_in_the_log(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def behave(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await reply(writer, 401, b"{}")
        return True

    with pytest.raises(EngineFailed, match="refuses this server's key"):
        await ask(await connect(FakeUpstream(behave=behave), key="topsecret"))
    assert "PIT_UPSTREAM_API_KEY" in caplog.text
    assert "topsecret" not in caplog.text


async def test_without_a_tokenizer_a_count_is_an_upper_bound(connect: Connect) -> None:
    upstream = FakeUpstream()
    engine = await connect(upstream)
    prompt = await engine.prepare([{"role": "user", "content": "Grüße " * 5}])
    assert prompt.tokens is not None and prompt.tokens >= 40
    assert (await engine.prepare(CHAT, count=False)).tokens is None
    assert upstream.seen["/tokenize"] == 0


async def test_scores_or_a_clear_word_why_not(connect: Connect) -> None:
    async def slow(_: FakeUpstream, writer: asyncio.StreamWriter, number: int) -> bool:
        await asyncio.sleep(1)
        return False

    asked = [Comparison(tuple(CHAT), "It is red.", "No.")] * 2
    upstream = FakeUpstream()
    scorer = RemoteScorer((await connect(upstream)).pool, "gap", 256, IMPROVE_TURN, timeout_s=2)
    scores = await scorer.score(asked)
    assert (scores.values, scores.tokens) == ([1.5, 1.5], 14)
    sent = upstream.bodies[0]
    assert [m["content"] for m in sent["messages"]] == [CHAT[0]["content"], "No.", IMPROVE_TURN, "It is red."]
    assert sent["use_activation"] is False
    late = RemoteScorer((await connect(FakeUpstream(behave=slow))).pool, "gap", 256, None, timeout_s=0.1)
    with pytest.raises(ScoringUnavailable, match=r"within 0\.1 s"):
        await late.score(asked)
    dead = RemoteScorer((await connect(free_address())).pool, "gap", 256, None, timeout_s=2)
    with pytest.raises(ScoringUnavailable):
        await dead.score(asked)
