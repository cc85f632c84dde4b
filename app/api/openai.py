"""What the OpenAI-compatible answers are made of: objects, chunks, log-probabilities, usage.

A chunk is put together from JSON text, without a model and without a copy: it is the one thing that a
server does for every token.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from starlette.responses import Response

from app.api.render import dumps
from app.engines.base import Delta, TokenLogprob, ToolCallDelta
from app.improve.answer import Answers
from app.improve.events import TokenCount

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0
"""Minus infinity is no JSON; this is what vLLM sends instead."""
Kind = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class Envelope:
    """What the answer and all chunks of one request begin with."""

    def __init__(self, prefix: str, kind: Kind, model: str) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        head = {"id": self.id, "object": kind, "created": int(time.time()), "model": model}
        self._head = dumps(head)[:-1]

    def answer(self, choices: Sequence[dict[str, Any]], usage: TokenCount) -> Response:
        """The whole answer."""
        body = f'{self._head},"choices":{dumps(choices)},"usage":{dumps(usage_object(usage))}}}'
        return Response(encoded(body), media_type="application/json")

    def chunk(self, choice: str, usage: str = "") -> bytes:
        """A Server-Sent Event of one choice (its JSON), or of none (""), with the JSON of a usage object."""
        tail = f',"usage":{usage}' if usage else ""
        return encoded(f'data: {self._head},"choices":[{choice}]{tail}}}\n\n')


def encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which a model can write as an escape in JSON, becomes a question mark."""
    return text.encode("utf-8", "replace")


class ChunkUsage:
    """The `usage` of the chunks of a stream, as its stream_options ask for it."""

    def __init__(self, answers: Answers, *, at_end: bool, continuous: bool) -> None:
        self.answers, self.at_end, self.continuous = answers, at_end, continuous

    def of(self, number: int) -> str:
        """The usage of a chunk of one choice: its own tokens up to now, null, or nothing at all."""
        if self.continuous:
            return dumps(usage_object(self.answers.counts[number], details=False))
        return "null" if self.at_end else ""


async def stream_answers(
    envelope: Envelope,
    answers: Answers,
    usage: ChunkUsage,
    first: Callable[[int], str | None],
    choice: Callable[[int, Delta], str | None],
) -> AsyncGenerator[bytes, None]:
    """The chunks of all choices, ended by [DONE]. `first` gives what comes before any delta of a choice,
    `choice` what stands for a delta; None: no chunk."""
    begun = False
    async with aclosing(answers.deltas()) as deltas:
        async for number, delta in deltas:
            if not begun:
                begun = True
                for n in range(len(answers.counts)):
                    if opening := first(n):
                        yield envelope.chunk(opening, usage.of(n))
            if made := choice(number, delta):
                yield envelope.chunk(made, usage.of(number))
    if usage.at_end:
        yield envelope.chunk("", dumps(usage_object(answers.usage)))
    yield DONE


def usage_object(tokens: TokenCount, *, details: bool = True) -> dict[str, Any]:
    """OpenAI's usage object."""
    found: dict[str, Any] = {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.total,
    }
    if details:
        found["prompt_tokens_details"] = {"cached_tokens": tokens.cached_tokens}
    return found


def chat_logprobs(tokens: Sequence[TokenLogprob], top: int) -> dict[str, Any]:
    """The `logprobs` of a chat choice, with the `top` likeliest tokens at each place."""
    content = [
        _chat_logprob(token.token, token.logprob)
        | {"top_logprobs": [_chat_logprob(*found) for found in token.top[:top]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_logprob(token: str, logprob: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": max(logprob, LOWEST_LOGPROB),
        "bytes": list(token.encode("utf-8", "replace")),
    }


def completion_logprobs(tokens: Sequence[TokenLogprob], top: int, offset: int) -> tuple[dict[str, Any], int]:
    """The `logprobs` of a completion's choice, whose text begins at `offset`, and where it ends.

    The chosen token is always among the top ones, so they may be one more than asked for.
    """
    found: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for token in tokens:
        found["text_offset"].append(offset)
        found["token_logprobs"].append(max(token.logprob, LOWEST_LOGPROB))
        found["tokens"].append(token.token)
        likely = token.top[: top + 1] or ((token.token, token.logprob),)
        found["top_logprobs"].append({text: max(value, LOWEST_LOGPROB) for text, value in likely})
        offset += len(token.token)
    return found, offset


def tool_call_object(call: ToolCallDelta) -> dict[str, Any]:
    """A piece of a tool call, as a chunk has it."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
