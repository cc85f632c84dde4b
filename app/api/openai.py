"""OpenAI-compatible chat completions: `policy` answers, `pit` drafts, improves and answers with the best."""

import re
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request

from app.api.improve import finish
from app.api.render import dumps, shown, sse
from app.api.streaming import EventStream, unless_disconnected
from app.errors import BadRequest
from app.improve.answer import PolicyAnswer
from app.improve.events import Result, TokenCount, Usage
from app.improve.loop import ImprovementRun
from app.improve.options import Models
from app.runtime import Runtime
from app.schemas import ERRORS, ChatCompletionRequest
from app.telemetry import Telemetry

router = APIRouter(tags=["openai"])
PIECES = re.compile(r"\S+\s*|\s+")
"""A finished answer is streamed word by word, so that a client sees ordinary chunks."""


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that this server answers as."""
    runtime: Runtime = request.app.state.runtime
    names = _model_names(runtime.models)
    created = int(request.app.state.started)
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": created, "owned_by": "pit-serve"} for name in names
        ],
    }


@router.post("/v1/chat/completions", responses=ERRORS)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """One chat completion, unary or streamed."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true.", param="stream_options")
    if body.pit is not None and body.model != "pit":
        raise BadRequest(
            "The pit object holds the options of model pit; this request asks for policy.", param="pit"
        )
    names = _model_names(runtime.models)
    if body.model not in names:
        raise BadRequest(
            f"This server has no model {body.model}. It has: {', '.join(names)}.",
            param="model",
            code="model_not_found",
        )
    chat = await Chat.start(body, runtime.models, telemetry)
    if body.stream:
        return EventStream(chat.stream(), ping_s=runtime.settings.ping_interval_s, telemetry=telemetry)
    return await unless_disconnected(request, chat.answer(), telemetry)


def _model_names(models: Models) -> list[str]:
    return (["policy"] if models.policy else []) + (["pit"] if models.policy and models.improver else [])


class Chat:
    """One completion. `start` refuses what cannot be served; then call `answer` or `stream` once."""

    @classmethod
    async def start(cls, body: ChatCompletionRequest, models: Models, telemetry: Telemetry) -> "Chat":
        """Raises `BadRequest`, `ContextTooLong` and `ScoringUnavailable`."""
        options = body.options()
        if body.model == "pit":
            return cls(body, telemetry, run=await ImprovementRun.start(models, options))
        return cls(body, telemetry, policy=await PolicyAnswer.start(models, options))

    def __init__(
        self,
        body: ChatCompletionRequest,
        telemetry: Telemetry,
        *,
        run: ImprovementRun | None = None,
        policy: PolicyAnswer | None = None,
    ) -> None:
        self.body, self.telemetry, self.run, self.policy = body, telemetry, run, policy
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    async def answer(self) -> dict[str, Any]:
        """The whole completion."""
        text, reason = "", "stop"
        async with aclosing(self._pieces()) as pieces:
            async for piece, finish_reason in pieces:
                text += piece
                reason = finish_reason or reason
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        return self._object("chat.completion", [choice]) | {"usage": self._usage()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The completion as Server-Sent Events, ended by [DONE]. An error is sent as an event, and ends it
        too."""
        with_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        extra: dict[str, Any] = {"usage": None} if with_usage else {}
        try:
            yield self._chunk({"role": "assistant", "content": ""}, None, extra)
            async with aclosing(self._pieces()) as pieces:
                async for piece, finish_reason in pieces:
                    if piece:
                        yield self._chunk({"content": piece}, None, extra)
                    if finish_reason:
                        yield self._chunk({}, finish_reason, extra)
            if with_usage:
                yield sse(dumps(self._object("chat.completion.chunk", []) | {"usage": self._usage()}))
        except Exception as error:
            yield sse(dumps(shown(error).body()))
        yield sse("[DONE]")

    async def _pieces(self) -> AsyncGenerator[tuple[str, str | None], None]:
        """Pieces of text, the last with the finish reason."""
        if self.policy:
            try:
                async with aclosing(self.policy.deltas()) as deltas:
                    async for delta in deltas:
                        yield delta.text, delta.finish_reason
            finally:
                self.telemetry.count("chat", self.policy.usage)
            return
        assert self.run is not None
        result = await finish(self.run, self.telemetry)
        for piece in PIECES.findall(result.response):
            yield piece, None
        yield "", "length" if _was_cut(self.run, result) else "stop"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None, extra: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse(dumps(self._object("chat.completion.chunk", [choice]) | extra))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        """OpenAI's usage object. For `pit` it sums every generation of the run; scoring is not part of it."""
        if self.policy:
            tokens = self.policy.usage
        else:
            assert self.run is not None
            tokens = _generated(self.run.usage)
        return {
            "prompt_tokens": tokens.prompt_tokens,
            "completion_tokens": tokens.completion_tokens,
            "total_tokens": tokens.total,
            "prompt_tokens_details": {"cached_tokens": tokens.cached_tokens},
        }


def _generated(usage: Usage) -> TokenCount:
    tokens = TokenCount()
    tokens.add(usage.draft)
    tokens.add(usage.improve)
    return tokens


def _was_cut(run: ImprovementRun, result: Result) -> bool:
    """Whether the chosen text ends at max_tokens: the generation that wrote it says so."""
    accepted = [iteration.finish_reason for iteration in result.iterations if iteration.accepted]
    return (accepted[-1] if accepted else run.draft_finish_reason) == "length"
