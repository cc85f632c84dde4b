"""The OpenAI-compatible endpoints over fakes: shapes, streams, refusals. tests/contract compares the numbers
with vLLM's own server."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.engines.base import Delta, Prompt, Sampling, ToolCallDelta
from app.errors import BadRequest, EngineFailed
from app.schemas import UNWATCHED
from tests.app.conftest import Serve
from tests.app.fakes import FakeEngine, fake_models
from tests.app.test_api import MESSAGES, assert_error, longer_is_better

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
POLICY: dict[str, Any] = {"model": "policy", "messages": MESSAGES, "seed": 5}
FUNCTION = {"name": "light", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALLS = (
    ToolCallDelta(0, "", id="call-1", name="light"),
    ToolCallDelta(0, '{"on":'),
    ToolCallDelta(0, "true}"),
    ToolCallDelta(1, "{}", id="call-2", name="light"),
)


def chunks_of(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_chat_completions_of_both_models(serve: Serve) -> None:
    policy = FakeEngine(script=lambda m: "the draft")
    client = await serve(replace(longer_is_better(), policy=policy))
    body = {"model": "policy", "messages": MESSAGES, "max_tokens": 9}
    answer = await post(client, CHAT, body)
    ChatCompletion.model_validate(answer, strict=True)
    assert answer["choices"][0]["message"]["content"] == "the draft"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 2
    better = await post(client, CHAT, body | {"model": "pit", "pit": {"max_iterations": 2}})
    ChatCompletion.model_validate(better, strict=True)
    assert better["choices"][0]["message"]["content"] == "the draft more more"
    assert better["usage"]["completion_tokens"] == 2 + 3 + 4


@pytest.mark.parametrize("model", ["policy", "pit"])
async def test_chat_completions_stream_ordinary_chunks(serve: Serve, model: str) -> None:
    client = await serve()
    body = {"model": model, "messages": MESSAGES, "seed": 5, "max_completion_tokens": 9}
    whole = await post(client, CHAT, body)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of(await client.post(CHAT, json=body | options))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
        == (whole["choices"][0]["message"]["content"])
    )
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    plain = chunks_of(await client.post(CHAT, json=body | {"stream": True}))
    assert all("usage" not in chunk for chunk in plain)


async def test_choices_have_their_own_seeds_and_one_prompt(serve: Serve) -> None:
    """Choice j draws with seed + j, as in vLLM; the prompt is counted once."""
    client = await serve()
    answer = await post(client, CHAT, POLICY | {"n": 3})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    alone = [await post(client, CHAT, POLICY | {"seed": seed}) for seed in (5, 6, 7)]
    assert [choice["message"] for choice in answer["choices"]] == [a["choices"][0]["message"] for a in alone]
    assert answer["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == sum(a["usage"]["completion_tokens"] for a in alone)
    chunks = chunks_of(await client.post(CHAT, json=POLICY | {"n": 3, "stream": True}))
    for choice in answer["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


async def test_sampling_reaches_the_engine(serve: Serve) -> None:
    engine = FakeEngine()
    client = await serve(fake_models(policy=engine))
    given: dict[str, Any] = {"temperature": 0.4, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1}
    given |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": "zz", "max_tokens": 6}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    given |= {"logit_bias": {"3": 1.5}, "logprobs": True, "top_logprobs": 2}
    await post(client, CHAT, POLICY | given | {"response_format": response_format})
    sampling = engine.samplings[-1]
    assert sampling.constraint is not None and sampling.constraint.schema == schema
    assert replace(sampling, constraint=None) == Sampling(
        6, 0.4, 0.9, 7, 1.1, 5, ("zz",), 0.5, -0.5, {3: 1.5}, 2, None, UNWATCHED
    )
    await post(client, CHAT, POLICY | {"response_format": {"type": "json_object"}})
    assert engine.samplings[-1].constraint is not None and engine.samplings[-1].constraint.schema is None
    await post(client, CHAT, POLICY | {"response_format": {"type": "text"}, "top_k": -1})
    assert [engine.samplings[-1].constraint, engine.samplings[-1].top_k] == [None, None]


async def test_only_who_reads_along_is_sent_every_token(serve: Serve) -> None:
    """Tokens come eight at a time from the engine where the answer is sent whole."""
    engine = FakeEngine()
    client = await serve(fake_models(policy=engine, improver=engine))
    for stream, interval in ((True, 1), (False, UNWATCHED)):
        for path, body in ((CHAT, POLICY), ("/v1/improve", {"messages": POLICY["messages"]})):
            engine.samplings.clear()
            (await client.post(path, json=body | {"stream": stream})).raise_for_status()
            assert {sampling.stream_interval for sampling in engine.samplings} == {interval}


async def test_calls_of_tools_are_given_whole_and_in_pieces(serve: Serve) -> None:
    engine = FakeEngine(calls=CALLS, script=lambda m: "I shall:")
    client = await serve(fake_models(policy=engine))
    body = POLICY | {"tools": TOOLS}
    answer = await post(client, CHAT, body)
    ChatCompletion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I shall:"
    assert choice["message"]["tool_calls"] == [
        {"id": "call-1", "type": "function", "function": {"name": "light", "arguments": '{"on":true}'}},
        {"id": "call-2", "type": "function", "function": {"name": "light", "arguments": "{}"}},
    ]
    assert engine.tools[-1] is not None
    assert (engine.tools[-1].choice, list(engine.tools[-1].functions)) == ("auto", TOOLS)
    chunks = chunks_of(await client.post(CHAT, json=body | {"stream": True}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    pieces = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert [piece["index"] for piece in pieces] == [0, 0, 0, 1]
    assert "".join(piece["function"]["arguments"] for piece in pieces[:3]) == '{"on":true}'
    assert [piece.get("id") for piece in pieces] == ["call-1", None, None, "call-2"]
    one = await post(client, CHAT, body | {"parallel_tool_calls": False})
    assert [call["id"] for call in one["choices"][0]["message"]["tool_calls"]] == ["call-1"]
    named = {"type": "function", "function": {"name": "light"}}
    for choice in ("required", "none", named):
        await post(client, CHAT, body | {"tool_choice": choice})
        assert engine.tools[-1] is not None
        assert engine.tools[-1].choice == choice


async def test_a_conversation_can_be_sent_back_as_it_came(serve: Serve) -> None:
    """The answer's message, empty fields and all, then the tool's result: what an agent does."""
    engine = FakeEngine(calls=CALLS[:1], script=lambda m: "I shall:")
    client = await serve(fake_models(policy=engine))
    message = (await post(client, CHAT, POLICY | {"tools": TOOLS}))["choices"][0]["message"]
    absent = ("refusal", "audio", "function_call", "reasoning")
    empty: dict[str, Any] = {"annotations": [], **dict.fromkeys(absent)}
    result = {"role": "tool", "tool_call_id": "call-1", "content": "It is on."}
    history = [
        {"role": "developer", "content": "Be brief.", "name": "maker"},
        *MESSAGES,
        empty | message,
        result,
    ]
    await post(client, CHAT, POLICY | {"messages": history})
    seen = engine.prompts[-1]
    assert [turn["role"] for turn in seen] == ["developer", "user", "assistant", "tool"]
    assert seen[2]["tool_calls"] == message["tool_calls"]
    assert (seen[3]["tool_call_id"], seen[0]["name"]) == ("call-1", "maker")


async def test_logprobs_in_chat(serve: Serve) -> None:
    client = await serve(fake_models(policy=FakeEngine(script=lambda m: "red é")))
    answer = await post(client, CHAT, POLICY | {"logprobs": True, "top_logprobs": 1})
    ChatCompletion.model_validate(answer, strict=True)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["red", " é"]
    assert content[1]["bytes"] == [32, 195, 169]
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["red"]
    alone = await post(client, CHAT, POLICY | {"logprobs": True})
    assert alone["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    chunks = chunks_of(await client.post(CHAT, json=POLICY | {"logprobs": True, "stream": True}))
    streamed = [e for c in chunks if (found := c["choices"][0]["logprobs"]) for e in found["content"]]
    assert streamed == alone["choices"][0]["logprobs"]["content"]


async def test_completions_of_several_prompts(serve: Serve) -> None:
    client = await serve()
    body = {"model": "policy", "prompt": ["Hello", "The lamp"], "n": 2, "seed": 3, "logprobs": 1}
    answer = await post(client, TEXT, body)
    Completion.model_validate(answer, strict=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = await post(client, TEXT, body | {"prompt": "The lamp", "n": 1, "seed": 4})
    assert answer["choices"][3]["text"] == alone["choices"][0]["text"]
    offsets = alone["choices"][0]["logprobs"]["text_offset"]
    tokens = alone["choices"][0]["logprobs"]["tokens"]
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    assert [len(top) for top in alone["choices"][0]["logprobs"]["top_logprobs"]] == [2] * len(tokens)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of(await client.post(TEXT, json=body | options))
    for choice in answer["choices"]:
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [o for c in mine for o in c["logprobs"]["text_offset"]] == choice["logprobs"]["text_offset"]
    assert chunks[-1]["usage"] == answer["usage"]


async def test_completions_echo_their_prompt(serve: Serve) -> None:
    client = await serve()
    body: dict[str, Any] = {"model": "policy", "prompt": ["Hello ", "Hi "], "echo": True, "seed": 1}
    plain = await post(client, TEXT, body | {"echo": False})
    echoed = await post(client, TEXT, body)
    expected = [p + c["text"] for p, c in zip(body["prompt"], plain["choices"], strict=True)]
    assert [choice["text"] for choice in echoed["choices"]] == expected
    chunks = chunks_of(await client.post(TEXT, json=body | {"stream": True}))
    assert "".join(c["choices"][0]["text"] for c in chunks if not c["choices"][0]["index"]) == expected[0]


async def test_completions_default_to_sixteen_tokens(serve: Serve) -> None:
    engine = FakeEngine()
    client = await serve(fake_models(policy=engine))
    await post(client, TEXT, {"model": "policy", "prompt": [1, 2, 3]})
    assert engine.samplings[-1].max_tokens == 16


async def test_pit_improves_the_assistant_s_last_message(serve: Serve) -> None:
    client = await serve(longer_is_better())
    messages = [*MESSAGES, {"role": "assistant", "content": "no"}]
    body = {"model": "pit", "messages": messages, "pit": {"max_iterations": 2}, "seed": 1}
    answer = await post(client, CHAT, body)
    assert answer["choices"][0]["message"]["content"] == "no more more"
    empty = [*MESSAGES, {"role": "assistant", "content": ""}]
    assert_error(await client.post(CHAT, json=body | {"messages": empty}), 400, None, "messages.1")
    alone = [{"role": "assistant", "content": "no"}]
    assert_error(await client.post(CHAT, json=body | {"messages": alone}), 400, None, "messages")


async def test_pit_keeps_to_the_response_format(serve: Serve) -> None:
    """Draft and improvement are generated in it, and nothing else is accepted."""
    engines = [FakeEngine(script=lambda m: '{"a":1}'), FakeEngine(script=lambda m: '{"a":22}')]
    models = replace(longer_is_better(), policy=engines[0], improver=engines[1])
    client = await serve(models)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    body = {"model": "pit", "messages": MESSAGES, "seed": 1}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await post(client, CHAT, body)
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": 22}
    for engine in engines:
        assert engine.samplings[0].constraint is not None
        assert engine.samplings[0].constraint.schema == schema
    await post(client, CHAT, body | {"response_format": {"type": "json_object"}})
    assert engines[0].samplings[-1].constraint is not None
    assert engines[0].samplings[-1].constraint.schema == {"type": "object"}


@pytest.mark.parametrize("model", ["policy", "pit"])
async def test_what_says_nothing_is_let_through(serve: Serve, model: str) -> None:
    """Fields that clients send by themselves."""
    client = await serve()
    harmless: dict[str, Any] = {"user": "me", "metadata": {"a": "b"}, "store": False, "n": 1}
    harmless |= {"service_tier": "auto", "safety_identifier": "me", "prompt_cache_key": "k"}
    harmless |= {"logprobs": False}
    harmless |= {"modalities": ["text"], "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}
    harmless |= {"response_format": {"type": "text"}, "parallel_tool_calls": None, "stream": False}
    body = {"model": model, "messages": MESSAGES, "seed": 1}
    plain, filled = await post(client, CHAT, body), await post(client, CHAT, body | harmless)
    assert filled["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"red": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_everything": True}}, "stream_options"),
        ({"pit": {"max_iterations": 2}}, "pit"),
        ({"model": "pit", "pit": {"max_iteration": 2}}, "pit"),
        ({"model": "pit", "n": 2}, "n"),
        ({"model": "pit", "logprobs": True}, "logprobs"),
        ({"model": "pit", "tools": TOOLS}, "tools"),
        (
            {
                "model": "pit",
                "response_format": {"type": "json_object"},
                "pit": {"keep": {"json_schema": {"type": "object"}}},
            },
            "response_format",
        ),
        ({"model": "pit", "logit_bias": {"3": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning": "secret"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
        ({"max_tokens": 5000}, None),
    ],
)
async def test_bad_chat_requests_are_refused_by_name(
    serve: Serve, change: dict[str, Any], param: str | None
) -> None:
    client = await serve()
    body = {"model": "policy", "messages": MESSAGES} | change
    refused = await client.post(CHAT, json=body)
    assert_error(refused, 400, None)
    found = refused.json()["error"]["param"]
    assert found is not None and "[" not in found
    assert param is None or found.split(".")[0] == param
    if "stream_options" not in change:
        assert_error(await client.post(CHAT, json=body | {"stream": True}), 400, None)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "pit"}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["Hi", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "word " * 300}, "prompt"),
        ({"prompt": ["Hi"] * 100, "n": 2}, "n"),
        ({"prompt": [1, 2], "echo": True}, "echo"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"suffix": "there"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
async def test_bad_completion_requests_are_refused_by_name(
    serve: Serve, change: dict[str, Any], param: str
) -> None:
    client = await serve()
    refused = await client.post(TEXT, json={"model": "policy", "prompt": "Hi"} | change)
    assert_error(refused, 400, None)
    assert refused.json()["error"]["param"].split(".")[0] == param


async def test_models_have_names_and_further_names(serve: Serve) -> None:
    client = await serve(served_model_name=("gpt-4o-mini=pit", "org/base=policy"))
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["policy", "pit", "gpt-4o-mini", "org/base"]
    assert (await client.get("/v1/models/org/base")).json() == listed[3]
    assert_error(await client.get("/v1/models/gpt-4"), 404, "model_not_found", "model")
    assert_error(await client.post(CHAT, json=POLICY | {"model": "gpt-4"}), 404, "model_not_found", "model")
    named = await post(client, CHAT, POLICY | {"model": "gpt-4o-mini", "pit": {"max_iterations": 1}})
    assert named["model"] == "gpt-4o-mini"
    without = await serve(replace(fake_models(), improver=None), served_model_name=("gpt-4o-mini=pit",))
    assert [model["id"] for model in (await without.get("/v1/models")).json()["data"]] == ["policy"]


class Refusing(FakeEngine):
    """Refuses when it should generate, as vLLM does with a token that it does not know."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
        if sampling.max_tokens > 1:
            yield Delta("red", 1)
        raise EngineFailed("It died.") if sampling.max_tokens > 1 else BadRequest("No.", param="logit_bias")


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_fails_with_a_status_before_it_begins_and_an_event_after(
    serve: Serve, path: str
) -> None:
    client = await serve(fake_models(policy=Refusing()))
    body: dict[str, Any] = {"model": "policy", "max_tokens": 1, "stream": True}
    body |= {"messages": MESSAGES} if path == CHAT else {"prompt": "Hi"}
    assert_error(await client.post(path, json=body), 400, None, "logit_bias")
    begun = await client.post(path, json=body | {"max_tokens": 2})
    assert begun.status_code == 200
    assert chunks_of(begun)[-1]["error"]["type"] == "engine_error"
    assert_error(await client.post(path, json=body | {"max_tokens": 2, "stream": False}), 500, None)


class Slow(FakeEngine):
    """Fails after a while, as one does whose queue is long."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
        await asyncio.sleep(0.1)
        raise EngineFailed("It died.")
        yield Delta("", 1)


@pytest.mark.parametrize("model", ["policy", "pit"])
async def test_an_error_after_a_comment_is_an_event(serve: Serve, model: str) -> None:
    """The status has gone out with the comment: the stream must still say what happened, and end."""
    client = await serve(fake_models(policy=Slow()), ping_interval_s=0.02)
    broken = await client.post(CHAT, json=POLICY | {"model": model, "stream": True})
    assert broken.status_code == 200
    assert ": ping" in broken.text
    assert chunks_of(broken)[-1]["error"]["message"] == "It died."


async def test_half_a_surrogate_pair_in_a_call_breaks_no_answer(serve: Serve) -> None:
    calls = (ToolCallDelta(0, "\ud83d", id="c", name="light"),)
    client = await serve(fake_models(policy=FakeEngine(calls=calls)))
    answer = await post(client, CHAT, POLICY | {"tools": TOOLS})
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "?"
