"""Generation by any server that speaks OpenAI's API: vLLM, a router in front of many, a vendor."""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.checkpoint import SamplingDefaults
from app.engines.base import (
    Delta,
    FinishReason,
    Message,
    Prompt,
    Sampling,
    TokenLogprob,
    ToolCallDelta,
    Tools,
)
from app.engines.chat import most_tokens
from app.engines.upstream import NOT_THERE, UpstreamPool
from app.errors import EngineFailed

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
USUAL_RESPONSE = 512
FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
FAILED_FINISH = ("abort", "error")


@dataclass(frozen=True, slots=True)
class Question:
    """What a `Prompt` of this engine holds: the request's path and its part that is not sampling. `key`:
    requests with the same one share a beginning."""

    path: str
    body: Mapping[str, Any]
    key: bytes


class RemoteEngine:
    """One model behind a pool of upstreams. See `Engine` for what the methods promise.

    `tokenizes`: the upstreams have vLLM's /tokenize. Without it a counted prompt has an upper bound for its
    length, one token for each byte.
    """

    def __init__(
        self,
        pool: UpstreamPool,
        model: str,
        context_length: int,
        defaults: SamplingDefaults,
        *,
        tokenizes: bool = False,
    ) -> None:
        self.pool, self.model_id = pool, model
        self.context_length, self.defaults = context_length, defaults
        self.tokenizes = tokenizes

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        """Costs no request without `count`, unless the conversation may be too long for the context."""
        body: dict[str, Any] = {"messages": list(messages)}
        bound = most_tokens(messages)
        if tools is not None:
            body["tools"], body["tool_choice"] = list(tools.functions), tools.choice
            if not tools.parallel:
                body["parallel_tool_calls"] = False
            bound += len(json.dumps(body["tools"]))
        question = Question(CHAT, body, beginning(messages))
        fits = bound + (self.defaults.max_tokens or USUAL_RESPONSE) <= self.context_length
        if not count and (fits or not self.tokenizes):
            return Prompt(question, None)
        if not self.tokenizes:
            return Prompt(question, bound)
        asked = {"messages": body["messages"], "tools": body.get("tools"), "add_generation_prompt": True}
        return Prompt(question, len(await self._tokenize(asked, question.key)))

    async def prepare_text(self, text: str | Sequence[int]) -> Prompt:
        content = text if isinstance(text, str) else list(text)
        question = Question(COMPLETIONS, {"prompt": content}, str(content[:256]).encode())
        if not isinstance(text, str):
            return Prompt(question, len(text))
        if not self.tokenizes:
            return Prompt(question, len(text.encode("utf-8", "replace")) + 1)
        return Prompt(question, len(await self._tokenize({"prompt": text}, question.key)))

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        if not self.tokenizes:
            raise EngineFailed("The upstream cannot tokenize.")
        return await self._tokenize({"messages": list(messages), "add_generation_prompt": True}, b"")

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        question = prompt.content
        assert isinstance(question, Question)
        chat = question.path == CHAT
        body = {"model": self.model_id, **question.body, **parameters(sampling, chat)}
        answer = _Answer(chat)
        async with contextlib.aclosing(self.pool.stream(question.path, body, question.key)) as events:
            async for event in events:
                for delta in answer.read(event):
                    yield delta
        yield answer.end()

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Needs vLLM's `prompt_logprobs`."""
        body = {
            "model": self.model_id,
            "prompt": [*prompt_ids, *completion_ids],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        answer = await self.pool.post(COMPLETIONS, body)
        try:
            rows = answer["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
            return [
                float(row[str(token)]["logprob"]) for row, token in zip(rows, completion_ids, strict=True)
            ]
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineFailed("The upstream gave no log-probabilities of the prompt.") from None

    async def check_health(self) -> None:
        self.pool.check_health()

    async def close(self) -> None:
        await self.pool.close()

    async def _tokenize(self, asked: dict[str, Any], key: bytes) -> list[int]:
        answer = await self.pool.post(TOKENIZE, {"model": self.model_id, **asked}, key)
        try:
            return [int(token) for token in answer["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise EngineFailed("The upstream gave no tokens.") from None


async def can_tokenize(pool: UpstreamPool, model: str) -> bool:
    """Whether the upstreams have vLLM's /tokenize. Raises `AppError` when they cannot be asked."""
    try:
        answer = await pool.post(TOKENIZE, {"model": model, "prompt": "Hello"})
    except EngineFailed as error:
        if error.code == NOT_THERE:
            return False
        raise
    return isinstance(answer, dict) and isinstance(answer.get("tokens"), list)


def beginning(messages: Sequence[Message]) -> bytes:
    """What all turns of one conversation share: everything up to the user's first message."""
    parts: list[str] = []
    for message in messages:
        parts.append(message["content"] or "")
        if message["role"] == "user":
            break
    return "\0".join(parts).encode("utf-8", "replace")


def parameters(sampling: Sampling, chat: bool) -> dict[str, Any]:
    """The request's fields for a sampling. What is left at its default is left out, for servers that know
    only OpenAI's fields."""
    found: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    found |= {name: value for name, value in optional.items() if value or (name == "seed" and value == 0)}
    if sampling.logit_bias:
        found["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        found |= (
            {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
        )
    if sampling.constraint is not None:
        found["response_format"] = _response_format(sampling.constraint.schema)
    return found


def _response_format(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": schema, "strict": True}}


class _Answer:
    """Reads the chunks of one streamed completion. The last piece waits for the usage that follows it."""

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        self._last: Delta | None = None
        self._tokens = 0

    def read(self, event: bytes) -> Iterator[Delta]:
        """Raises `EngineFailed` for an error in the stream, or nonsense."""
        if event == b"[DONE]":
            return
        try:
            chunk = json.loads(event)
            if chunk.get("error"):
                raise EngineFailed("The upstream failed while it wrote this response.")
            for choice in chunk.get("choices") or ():
                delta = self._delta(choice)
                self._tokens += delta.tokens
                if delta.finish_reason:
                    self._last = delta
                elif delta.text or delta.tokens:
                    yield delta
            if usage := chunk.get("usage"):
                self._count(usage)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EngineFailed("The upstream's answer is not what OpenAI's API says.") from None

    def end(self) -> Delta:
        """The last piece. Raises `EngineFailed` when the response is not complete."""
        if self._last is None:
            raise EngineFailed("The upstream ended the stream in the middle of the response.")
        return self._last

    def _count(self, usage: Mapping[str, Any]) -> None:
        """Put the usage into the last piece. A chunk may hold several tokens, or part of one: what was
        passed on as one for each chunk is made exact here."""
        if self._last is None:
            return
        details = usage.get("prompt_tokens_details") or {}
        written = int(usage["completion_tokens"]) - (self._tokens - self._last.tokens)
        self._last = replace(
            self._last,
            tokens=max(0, written),
            prompt_tokens=int(usage["prompt_tokens"]),
            cached_tokens=int(details.get("cached_tokens") or 0),
        )

    def _delta(self, choice: Mapping[str, Any]) -> Delta:
        reason = choice.get("finish_reason")
        if reason in FAILED_FINISH:
            raise EngineFailed("The upstream aborted this response.")
        finish = FINISH.get(reason, "stop") if reason else None
        found = choice.get("logprobs")
        if not self._chat:
            text = choice.get("text") or ""
            logprobs = tuple(_completion_logprobs(found)) if found else ()
            return Delta(text, len(logprobs) or int(bool(text)), finish, logprobs=logprobs)
        delta = choice.get("delta") or {}
        text = delta.get("content") or ""
        calls = tuple(_tool_call(call) for call in delta.get("tool_calls") or ())
        logprobs = tuple(_chat_logprobs(found)) if found else ()
        tokens = len(logprobs) or (1 if text or calls else 0)
        return Delta(text, tokens, finish, logprobs=logprobs, tool_calls=calls)


def _tool_call(call: Mapping[str, Any]) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        int(call.get("index", 0)), function.get("arguments") or "", call.get("id"), function.get("name")
    )


def _chat_logprobs(found: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    for row in found.get("content") or ():
        top = tuple((one["token"], float(one["logprob"])) for one in row.get("top_logprobs") or ())
        yield TokenLogprob(row["token"], float(row["logprob"]), top)


def _completion_logprobs(found: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    for token, value, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True):
        yield TokenLogprob(token, float(value), tuple((top or {}).items()))
