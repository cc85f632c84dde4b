"""`POST /v1/chat/completions`: `policy` answers, `pit` drafts, improves and answers with the best."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.improve import Checkpoint, begin, finish
from app.api.models import find_model
from app.api.openai import (
    DONE,
    ChunkUsage,
    Envelope,
    chat_logprobs,
    stream_answers,
    tool_call_object,
    usage_object,
)
from app.api.render import dumps
from app.api.streaming import respond
from app.engines.base import Delta, TokenLogprob, ToolCallDelta
from app.engines.chat import most_tokens
from app.errors import BadRequest
from app.improve.answer import Answers
from app.improve.events import Result, TokenCount
from app.improve.loop import ImprovementRun
from app.improve.options import Models
from app.lifecycle import Lifecycle, stopping
from app.runtime import Runtime
from app.schemas import STREAMED
from app.schemas_openai import ChatCompletionRequest
from app.telemetry import Telemetry

router = APIRouter(tags=["openai"])
PIECES = re.compile(r"\S+\s*|\s+")
"""A finished answer is streamed word by word, so that a client sees ordinary chunks."""


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """One chat completion, unary or streamed."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    chat = await start_chat(body, runtime, telemetry)
    return await respond(request, chat, chat.answer, chat.stream() if body.stream else None)


async def start_chat(
    body: ChatCompletionRequest,
    runtime: Runtime,
    telemetry: Telemetry,
    checkpoint: Checkpoint | None = None,
) -> "PolicyChat | PitChat":
    """The request to the model that it names; a run of model pit keeps its checkpoint. Raises `BadRequest`,
    `NotFound`, `ContextTooLong`, `ScoringUnavailable`."""
    body.check()
    model = find_model(runtime, body.model)
    if model == "pit":
        return await PitChat.start(body, runtime, telemetry, checkpoint)
    if body.pit is not None:
        raise BadRequest(
            f"The pit object holds the options of model pit; this request asks for {body.model}.", param="pit"
        )
    return await PolicyChat.start(body, runtime.models, telemetry)


class PolicyChat:
    """One request to the policy. `start` refuses what cannot be served; then call `answer` or `stream`
    once."""

    lower = "Lower max_tokens or n, or shorten messages."

    @classmethod
    async def start(cls, body: ChatCompletionRequest, models: Models, telemetry: Telemetry) -> "PolicyChat":
        """Raises `BadRequest` and `ContextTooLong`."""
        engine = models.engine("policy")
        prompt = await engine.prepare(body.conversation(), count=False, tools=body.chosen_tools())
        sampling = body.sampling(engine.defaults, (body.top_logprobs or 0) if body.logprobs else None)
        answers = Answers(engine, [prompt], sampling, n=body.n or 1, max_tokens=body.limit)
        return cls(body, answers, telemetry)

    def __init__(self, body: ChatCompletionRequest, answers: Answers, telemetry: Telemetry) -> None:
        self.body, self.answers, self.telemetry = body, answers, telemetry
        self.envelope = Envelope(
            "chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", body.model
        )

    async def worst_case(self, *, exact: bool) -> int:
        """Tokens that it may read and write at most. Raises `BadRequest` and `EngineFailed`."""
        messages, tools = self.body.conversation(), self.body.chosen_tools()
        tokens = self.answers.prompts[0].tokens
        if tokens is None and exact:
            tokens = (await self.answers.engine.prepare(messages, tools=tools)).tokens
        if tokens is None:
            tokens = most_tokens(messages) + (len(dumps(tools.functions)) if tools else 0)
        return self.answers.worst_case([tokens])

    @property
    def tokens_used(self) -> int:
        return self.answers.tokens_used

    async def answer(self) -> Response:
        """The whole answer."""
        choices = [_Choice() for _ in self.answers.counts]
        try:
            async with aclosing(self.answers.deltas()) as deltas:
                async for number, delta in deltas:
                    choices[number].add(delta, self._calls(delta))
        finally:
            self.telemetry.count("chat", self.answers.usage)
        found = [
            _choice(number, choice.message(), choice.finish_reason, self._logprobs(choice.logprobs))
            for number, choice in enumerate(choices)
        ]
        return self.envelope.answer(found, self.answers.usage)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as Server-Sent Events."""
        body = self.body
        usage = ChunkUsage(self.answers, at_end=body.with_usage, continuous=body.with_continuous_usage)
        chunks = stream_answers(self.envelope, self.answers, usage, _opening, self._chunk)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self.telemetry.count("chat", self.answers.usage)

    def _chunk(self, number: int, delta: Delta) -> str | None:
        calls = self._calls(delta)
        if not (delta.text or calls or delta.logprobs or delta.finish_reason):
            return None
        if calls:
            piece: dict[str, Any] = {"tool_calls": [tool_call_object(call) for call in calls]}
            if delta.text:
                piece["content"] = delta.text
            text = dumps(piece)
        else:
            text = f'{{"content":{dumps(delta.text)}}}' if delta.text else "{}"
        logprobs = dumps(self._logprobs(delta.logprobs)) if self.body.logprobs else "null"
        return _chunk(number, text, delta.finish_reason, logprobs)

    def _calls(self, delta: Delta) -> tuple[ToolCallDelta, ...]:
        """The calls of a delta; only the first call where the client wants no parallel ones."""
        if self.body.parallel_tool_calls is not False or not delta.tool_calls:
            return delta.tool_calls
        return tuple(call for call in delta.tool_calls if call.index == 0)

    def _logprobs(self, tokens: "list[TokenLogprob] | tuple[TokenLogprob, ...]") -> dict[str, Any] | None:
        return chat_logprobs(tokens, self.body.top_logprobs or 0) if self.body.logprobs else None


class PitChat:
    """One request to the loop. `start` refuses what cannot be served; then call `answer` or `stream` once."""

    @classmethod
    async def start(
        cls,
        body: ChatCompletionRequest,
        runtime: Runtime,
        telemetry: Telemetry,
        checkpoint: Checkpoint | None = None,
    ) -> "PitChat":
        """Raises `BadRequest`, `ContextTooLong` and `ScoringUnavailable`."""
        run = await begin(runtime.models, body.options(), checkpoint)
        return cls(body, run, runtime.lifecycle, telemetry, checkpoint)

    def __init__(
        self,
        body: ChatCompletionRequest,
        run: ImprovementRun,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.body, self.run, self.telemetry, self.checkpoint = body, run, telemetry, checkpoint
        # What goes on elsewhere from its checkpoint is not to end here with a part of it.
        self.ending = nullcontext() if checkpoint else lifecycle.cutting(run.cancel)
        self.lower = run.lower
        self.envelope = Envelope(
            "chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", body.model
        )

    async def worst_case(self, *, exact: bool) -> int:
        return await self.run.worst_case(exact=exact)

    @property
    def tokens_used(self) -> int:
        return self.run.tokens_used

    async def answer(self) -> Response:
        """The whole answer."""
        result = await self._finish()
        message = {"role": "assistant", "content": result.response, "refusal": None}
        return self.envelope.answer([_choice(0, message, self._reason(result), None)], self._usage(result))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The best response as Server-Sent Events, when the run has ended; comments until then."""
        usage = "null" if self.body.with_usage else ""
        yield self.envelope.chunk(_opening(0), usage)
        result = await self._finish()
        for piece in PIECES.findall(result.response):
            yield self.envelope.chunk(_chunk(0, f'{{"content":{dumps(piece)}}}', None), usage)
        yield self.envelope.chunk(_chunk(0, "{}", self._reason(result)), usage)
        if usage:
            yield self.envelope.chunk("", dumps(usage_object(self._usage(result))))
        yield DONE

    async def _finish(self) -> Result:
        """Run to the end, which a server that stops makes now: with the best so far, or, where nothing is
        written yet, with an error by which a client knows to ask another server."""
        with self.ending:
            result = await finish(self.run, self.telemetry, self.checkpoint)
        if result.stop_reason == "cancelled" and not result.response.strip():
            raise stopping()
        return result

    def _reason(self, result: Result) -> str:
        """Whether the chosen text was cut, at max_tokens or as the server stops: the generation that wrote it
        says so."""
        accepted = [iteration.finish_reason for iteration in result.iterations if iteration.accepted]
        last = accepted[-1] if accepted else self.run.draft_finish_reason
        return "length" if last in ("length", "cancelled") else "stop"

    @staticmethod
    def _usage(result: Result) -> TokenCount:
        """Every generation of the run; scoring is not part of it."""
        tokens = TokenCount()
        tokens.add(result.usage.draft)
        tokens.add(result.usage.improve)
        return tokens


class _Choice:
    """A choice while it grows."""

    def __init__(self) -> None:
        self.text, self.finish_reason = "", "stop"
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, dict[str, Any]] = {}

    def add(self, delta: Delta, calls: tuple[ToolCallDelta, ...]) -> None:
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        for piece in calls:
            call = self.calls.setdefault(
                piece.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = piece.id or call["id"]
            call["function"]["name"] += piece.name or ""
            call["function"]["arguments"] += piece.arguments

    def message(self) -> dict[str, Any]:
        if not self.calls:
            return {"role": "assistant", "content": self.text, "refusal": None}
        calls = [self.calls[index] for index in sorted(self.calls)]
        return {"role": "assistant", "content": self.text or None, "refusal": None, "tool_calls": calls}


def _choice(
    number: int, message: dict[str, Any], finish_reason: str, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def _opening(number: int) -> str:
    return _chunk(number, '{"role":"assistant","content":""}', None)


def _chunk(number: int, delta: str, finish_reason: str | None, logprobs: str = "null") -> str:
    """A chunk's choice as JSON text; `delta` and `logprobs` are JSON already."""
    reason = f'"{finish_reason}"' if finish_reason else "null"
    return f'{{"index":{number},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
