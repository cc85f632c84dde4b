"""Our OpenAI surface beside vLLM's own server, on the same model: field by field, number by number.

vLLM's answers hold fields of its own beside OpenAI's; docs/openai.md names them. What both have is the same.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx
import pytest

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
ASK: list[Any] = [{"role": "user", "content": "What is the price of the lamp?"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "lit": {"type": "boolean"}},
    "required": ["color", "lit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}},
    {
        "type": "function",
        "function": {
            "name": "light",
            "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        },
    },
]


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


class Pair(NamedTuple):
    """Clients of our server and of vLLM's."""

    ours: httpx.AsyncClient
    theirs: httpx.AsyncClient

    async def post(self, path: str, body: dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
        sent = {"model": "policy", **body}
        return await asyncio.gather(self.ours.post(path, json=sent), self.theirs.post(path, json=sent))


@pytest.fixture
async def pair(url: str, vllm_server: str) -> AsyncGenerator[Pair, None]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as ours,
        httpx.AsyncClient(base_url=vllm_server, timeout=60) as theirs,
    ):
        yield Pair(ours, theirs)


DIFFERENT = {
    # Drawn or timed.
    *("id", "created"),
    # vLLM's own; see docs/openai.md.
    *("stop_reason", "token_ids", "routed_experts", "system_fingerprint", "prompt_logprobs"),
    *("prompt_token_ids", "prompt_text", "kv_transfer_params"),
    # Ours counts what the prefix cache held, which depends on what came before.
    "prompt_tokens_details",
}


def cut(value: Any) -> Any:
    """An answer without what differs on purpose, and without fields that say nothing."""
    if isinstance(value, dict):
        kept = {key: cut(item) for key, item in value.items() if key not in DIFFERENT}
        return {key: item for key, item in kept.items() if item is not None}
    return [cut(item) for item in value] if isinstance(value, list) else value


def assert_same(mine: Any, vllms: Any, place: str = "") -> None:
    """Equal, numbers of log-probabilities within 1e-4."""
    if isinstance(mine, dict) and isinstance(vllms, dict):
        assert mine.keys() == vllms.keys(), place
        for key in mine:
            assert_same(mine[key], vllms[key], f"{place}.{key}")
    elif isinstance(mine, list) and isinstance(vllms, list):
        assert len(mine) == len(vllms), place
        for number, pair in enumerate(zip(mine, vllms, strict=True)):
            assert_same(*pair, f"{place}.{number}")
    elif isinstance(mine, float):
        assert mine == pytest.approx(vllms, abs=1e-4), place
    else:
        assert mine == vllms, place


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def put_together(chunks: list[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], Any]:
    """Each choice of a stream as a whole, and the usage of its last chunk."""
    whole: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found = whole.setdefault(
                choice["index"], {"text": "", "calls": {}, "logprobs": [], "tokens": [], "reason": None}
            )
            delta = choice.get("delta", {})
            found["text"] += delta.get("content") or choice.get("text") or ""
            for call in delta.get("tool_calls", ()):
                known = found["calls"].setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
            logprobs = choice.get("logprobs") or {}
            found["logprobs"] += logprobs.get("content") or []
            if "tokens" in logprobs:
                rows = zip(*(logprobs[key] for key in sorted(logprobs)), strict=True)
                found["tokens"] += [list(row) for row in rows]
            found["reason"] = choice["finish_reason"] or found["reason"]
    return whole, chunks[-1].get("usage")


GREEDY = {"temperature": 0, "max_tokens": 12}
SEEDED = {"temperature": 1.0, "max_tokens": 12, "seed": 7}
CHATS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "seeded": SEEDED,
    "defaults of the checkpoint": {"seed": 3},
    "several": SEEDED | {"n": 3},
    "top_p and top_k": SEEDED | {"top_p": 0.8, "top_k": 20},
    "top_k without a limit": SEEDED | {"top_k": -1},
    "penalties": SEEDED | {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.3},
    "bias": GREEDY | {"logit_bias": {"40": 100, "41": -100}},
    "stop": SEEDED | {"stop": ["e", "a"], "max_tokens": 40},
    "max_completion_tokens": {"temperature": 0, "max_completion_tokens": 5},
    "both limits": {"temperature": 0, "max_completion_tokens": 5, "max_tokens": 9},
    "logprobs": SEEDED | {"logprobs": True},
    "top logprobs": SEEDED | {"logprobs": True, "top_logprobs": 3, "n": 2},
    "top logprobs greedy": GREEDY | {"logprobs": True, "top_logprobs": 5},
    "json object": SEEDED | {"response_format": {"type": "json_object"}, "max_tokens": 60},
    "json schema": SEEDED
    | {"response_format": json_schema(SCHEMA)},
    "text format": GREEDY | {"response_format": {"type": "text"}},
    "roles": GREEDY
    | {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": w} for w in ("What", "is it?")]},
            {"role": "assistant", "content": "A lamp."},
            {"role": "user", "content": "And?", "name": "Ann"},
        ]
    },
    "ends with the assistant": GREEDY | {"messages": [*ASK, {"role": "assistant", "content": "It is"}]},
    "tool result": GREEDY
    | {
        "messages": [
            *ASK,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "light", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "It is lit."},
        ]
    },
    "tools not to be called": GREEDY | {"tools": TOOLS, "tool_choice": "none"},
    "tools that may be called": SEEDED | {"tools": TOOLS},
    "a tool that must be called": SEEDED
    | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "paint"}}, "max_tokens": 120},
    "any tool must be called, one": SEEDED
    | {"tools": TOOLS, "tool_choice": "required", "max_tokens": 120, "parallel_tool_calls": False},
}
TEXTS: dict[str, dict[str, Any]] = {
    "one": {"prompt": "The lamp has", **SEEDED},
    "sixteen tokens": {"prompt": "The lamp has", "temperature": 0},
    "several": {"prompt": ["The lamp", "Please tell me", "Hello"], "n": 2, **SEEDED},
    "token ids": {"prompt": [40, 41, 42], **GREEDY},
    "lists of token ids": {"prompt": [[40, 41, 42], [50]], **SEEDED},
    "echo": {"prompt": "The lamp has", "echo": True, **SEEDED},
    "logprobs": {"prompt": ["The lamp", "Hello"], "logprobs": 2, **SEEDED},
    "logprobs of the chosen": {"prompt": "The lamp", "logprobs": 0, **GREEDY},
    "logprobs and stop": {"prompt": "The lamp", "logprobs": 1, **SEEDED, "stop": "e", "max_tokens": 40},
    "json schema": {
        "prompt": "The lamp",
        "response_format": json_schema(SCHEMA),
        **SEEDED,
    },
    "penalties": {"prompt": "The lamp", "presence_penalty": 2, "logit_bias": {"40": 5.5}, **SEEDED},
}


def without_call_ids(answer: dict[str, Any]) -> dict[str, Any]:
    """Ids of calls are drawn; a call without text has content null here, and "" in vLLM."""
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id")
        if not choice["message"].get("content"):
            choice["message"]["content"] = None
    return answer


@pytest.mark.parametrize("name", CHATS)
async def test_chat_completions_are_vllm_s(pair: Pair, name: str) -> None:
    ours, theirs = await pair.post(CHAT, {"messages": ASK, **CHATS[name]})
    assert theirs.status_code == 200, theirs.text
    assert ours.status_code == 200, ours.text
    assert_same(cut(without_call_ids(ours.json())), cut(without_call_ids(theirs.json())))


@pytest.mark.parametrize("name", TEXTS)
async def test_completions_are_vllm_s(pair: Pair, name: str) -> None:
    ours, theirs = await pair.post(TEXT, TEXTS[name])
    assert theirs.status_code == 200, theirs.text
    assert ours.status_code == 200, ours.text
    assert_same(cut(ours.json()), cut(theirs.json()))


STREAMED = [(CHAT, name, {"messages": ASK, **body}) for name, body in CHATS.items()]
STREAMED += [(TEXT, name, body) for name, body in TEXTS.items()]


@pytest.mark.parametrize(("path", "body"), [pytest.param(p, b, id=f"{p} {n}") for p, n, b in STREAMED])
async def test_streams_are_vllm_s(pair: Pair, path: str, body: dict[str, Any]) -> None:
    """The chunks put together, the usage at the end; and the same text as without streaming."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    ours, theirs = await pair.post(path, {**body, **options})
    (mine, usage), (vllms, vllms_usage) = put_together(chunks_of(ours)), put_together(chunks_of(theirs))
    assert_same(cut(mine), cut(vllms))
    assert cut(usage) == cut(vllms_usage)
    plain = (await pair.ours.post(path, json={"model": "policy", **body})).json()
    for choice in plain["choices"]:
        text = choice["text"] if path == TEXT else choice["message"]["content"] or ""
        assert mine[choice["index"]]["text"] == text


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_continuous_usage_is_vllm_s(pair: Pair, path: str) -> None:
    body = {"messages": ASK} if path == CHAT else {"prompt": "The lamp"}
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    ours, theirs = await pair.post(path, {**body, **GREEDY, **options})
    mine, vllms = chunks_of(ours), chunks_of(theirs)
    # Two tokens may come in one chunk, on either side: the counts that both have agree.
    totals = [
        {chunk["usage"]["completion_tokens"]: chunk["usage"]["total_tokens"] for chunk in found}
        for found in (mine, vllms)
    ]
    assert all(totals[0][n] == totals[1][n] for n in totals[0].keys() & totals[1].keys())
    assert list(totals[0]) == sorted(totals[0])
    assert max(totals[0]) == max(totals[1]) == 12


BAD: list[tuple[str, str, dict[str, Any], str | None]] = [
    (CHAT, "no such model", {"model": "gpt-4"}, "model"),
    (CHAT, "no messages", {"messages": []}, None),
    (CHAT, "no tokens", {"max_tokens": 0}, "max_tokens"),
    (CHAT, "more tokens than the context", {"max_tokens": 5000}, None),
    (CHAT, "negative temperature", {"temperature": -1}, "temperature"),
    (CHAT, "top_p over 1", {"top_p": 1.5}, None),
    (CHAT, "no choices", {"n": 0}, None),
    (CHAT, "penalty out of range", {"presence_penalty": 3}, None),
    (CHAT, "bias of no token", {"logit_bias": {"5000": 1}}, "logit_bias"),
    (CHAT, "bias of a word", {"logit_bias": {"red": 1}}, None),
    (CHAT, "too many logprobs", {"logprobs": True, "top_logprobs": 21}, None),
    (CHAT, "top_logprobs alone", {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, "stream_options alone", {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, "five stops", {"stop": ["a", "b", "c", "d", "e"]}, None),
    (CHAT, "no tools", {"tools": []}, "tools"),
    (CHAT, "choice without tools", {"tool_choice": "required"}, "tool_choice"),
    (
        CHAT,
        "choice of another tool",
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sing"}}},
        "tool_choice",
    ),
    (CHAT, "format without its schema", {"response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, "no such format", {"response_format": {"type": "xml"}}, None),
    (
        CHAT,
        "no schema at all",
        {"response_format": json_schema({"type": "banana"})},
        None,
    ),
    (CHAT, "conversation over the context", {"messages": [{"role": "user", "content": "word " * 400}]}, None),
    (TEXT, "no such model", {"model": "gpt-4", "prompt": "Hi"}, "model"),
    (TEXT, "no prompt", {}, "prompt"),
    (TEXT, "empty prompt", {"prompt": ""}, "prompt"),
    (TEXT, "no prompts", {"prompt": []}, None),
    (TEXT, "unknown token id", {"prompt": [5, 999]}, None),
    (TEXT, "negative token id", {"prompt": [-5]}, None),
    (TEXT, "prompt over the context", {"prompt": "word " * 400}, None),
    (TEXT, "suffix", {"prompt": "Hi", "suffix": "there"}, "suffix"),
    (TEXT, "too many logprobs", {"prompt": "Hi", "logprobs": 21}, None),
]


@pytest.mark.parametrize(
    ("path", "body", "param"), [pytest.param(p, b, q, id=f"{p} {n}") for p, n, b, q in BAD]
)
async def test_bad_requests_get_vllm_s_status_and_shape(
    pair: Pair, path: str, body: dict[str, Any], param: str | None
) -> None:
    sent = {"messages": ASK, **body} if path == CHAT else body
    ours, theirs = await pair.post(path, sent)
    assert ours.status_code == theirs.status_code, theirs.text
    assert ours.json().keys() == theirs.json().keys() == {"error"}
    assert ours.json()["error"].keys() == theirs.json()["error"].keys()
    if param is not None:
        assert ours.json()["error"]["param"].split(".")[0] == theirs.json()["error"]["param"] == param
    if "stream_options" not in sent:
        streamed = await pair.ours.post(path, json={"model": "policy", **sent, "stream": True})
        assert streamed.status_code == ours.status_code, "a stream is refused before it begins"


async def test_models_are_listed_as_vllm_lists_them(pair: Pair) -> None:
    mine, vllms = [(await client.get("/v1/models")).json() for client in pair]
    assert mine["object"] == vllms["object"] == "list"
    assert mine["data"][0].keys() <= vllms["data"][0].keys()
    assert mine["data"][0]["id"] == vllms["data"][0]["id"] == "policy"
