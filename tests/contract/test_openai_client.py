"""The real `openai` client, sync and async, on the server over real vLLM."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import openai
import pytest

from tests.faults.figures import Figure, say

pytestmark = pytest.mark.engine
MESSAGES: list[Any] = [{"role": "user", "content": "What is the price of the lamp?"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "paint", "parameters": SCHEMA, "strict": True}}]


@pytest.fixture
async def client(url: str) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("model", ["policy", "pit"])
async def test_it_chats(client: openai.AsyncOpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 8, "seed": 1}
    answer = await client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = await client.chat.completions.create(**asked)
    assert again.choices[0].message.content == answer.choices[0].message.content
    text, usage = "", None
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert usage is not None
    say(
        Figure(
            15,
            f"async, model {model}: chat, whole and streamed, with a seed",
            f"the stream is the whole answer's text; {usage.completion_tokens} tokens of usage in both",
            "as OpenAI's own server",
            usage.completion_tokens == answer.usage.completion_tokens,
        )
    )


async def test_it_asks_for_choices_and_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="policy", messages=MESSAGES, max_tokens=6, seed=1, n=3, logprobs=True, top_logprobs=2
    )
    assert len({choice.message.content for choice in answer.choices}) == 3
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert all(entry.logprob < 0 and len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert answer.usage is not None
    entries = [e for c in answer.choices if c.logprobs for e in c.logprobs.content or ()]
    assert len(entries) == answer.usage.completion_tokens


async def test_it_calls_a_tool_and_sends_the_result_back(client: openai.AsyncOpenAI) -> None:
    """Named and required; the client's own message object goes back into the conversation."""
    named: Any = {"type": "function", "function": {"name": "paint"}}
    for choice in (named, "required"):
        answer = await client.chat.completions.create(
            model="policy",
            messages=MESSAGES,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=100,
            seed=1,
        )
        message = answer.choices[0].message
        assert message.tool_calls
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "paint"
        assert json.loads(call.function.arguments)["color"] in ("red", "blue")
        # OpenAI says stop where the request named the function.
        assert answer.choices[0].finish_reason == ("stop" if choice is named else "tool_calls")
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "It is painted."}
        again = await client.chat.completions.create(
            model="policy", messages=[*MESSAGES, cast(Any, message), result], max_tokens=5
        )
        assert again.choices[0].message.role == "assistant"


async def test_it_parses_structured_output(client: openai.AsyncOpenAI) -> None:
    from pydantic import BaseModel

    class Paint(BaseModel):
        lit: bool
        coats: list[bool]

    parsed = await client.chat.completions.parse(
        model="policy", messages=MESSAGES, response_format=Paint, max_tokens=120, seed=2, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Paint) or parsed.choices[0].finish_reason == "length"
    form: Any = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA}}
    answer = await client.chat.completions.create(
        model="policy", messages=MESSAGES, response_format=form, max_tokens=60, seed=3
    )
    assert json.loads(answer.choices[0].message.content or "")["color"] in ("red", "blue")


async def test_it_completes_texts(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="policy", prompt=["The lamp", "Hello"], max_tokens=5, seed=1, logprobs=1, echo=False
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    text = ""
    stream = await client.completions.create(
        model="policy", prompt="The lamp", max_tokens=5, seed=1, stream=True
    )
    async for chunk in stream:
        text += chunk.choices[0].text
    assert text == answer.choices[0].text


async def test_it_lists_models_and_sees_errors(client: openai.AsyncOpenAI) -> None:
    assert [model.id for model in (await client.models.list()).data] == ["policy", "pit"]
    assert (await client.models.retrieve("pit")).owned_by == "pit-serve"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "word " * 400}]
        )
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="policy", messages=MESSAGES, reasoning_effort="high")
    assert refused.value.param == "reasoning_effort"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="policy", messages=MESSAGES, logit_bias={"9999": 1}, stream=True
        )
    assert refused.value.param == "logit_bias"
    extra = {"pit": {"max_iterations": 1, "strategy": "self_refine"}}
    answer = await client.chat.completions.create(
        model="pit", messages=MESSAGES, max_tokens=8, extra_body=extra
    )
    say(
        Figure(
            15,
            "async: models, errors",
            "2 models listed; NotFoundError, BadRequestError with code and param in 5 cases",
            "as OpenAI's own server",
            answer.object == "chat.completion",
        )
    )


async def test_its_timeout_ends_the_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.02).chat.completions.create(
            model="policy", messages=MESSAGES, max_tokens=200, temperature=1.0
        )


async def test_the_synchronous_client(url: str) -> None:
    def work() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
            asked: dict[str, Any] = {"model": "policy", "messages": MESSAGES, "max_tokens": 6, "seed": 4}
            whole = plain.chat.completions.create(**asked).choices[0].message.content or ""
            chunks = plain.chat.completions.create(**asked, stream=True)
            return whole, "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    whole, streamed = await asyncio.to_thread(work)
    say(
        Figure(
            15,
            "sync: chat, whole and streamed",
            "the stream is the whole answer's text" if whole == streamed else "the texts differ",
            "as OpenAI's own server",
            whole == streamed != "",
        )
    )
