"""`POST /v1/completions`: texts that the policy continues."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.models import find_model
from app.api.openai import ChunkUsage, Envelope, completion_logprobs, stream_answers
from app.api.render import dumps
from app.api.streaming import respond
from app.engines.base import Delta, TokenLogprob
from app.errors import BadRequest
from app.improve.answer import Answers, prepare_all
from app.improve.options import Models
from app.observe import current
from app.runtime import Runtime
from app.schemas import STREAMED
from app.schemas_openai import COMPLETION_MAX_TOKENS, CompletionRequest
from app.telemetry import Telemetry

router = APIRouter(tags=["openai"])


@router.post("/v1/completions", responses=STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Any:
    """Completions of one prompt or several, unary or streamed."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    completion = await start_completion(body, runtime, telemetry)
    return await respond(request, completion, completion.answer, completion.stream() if body.stream else None)


async def start_completion(
    body: CompletionRequest, runtime: Runtime, telemetry: Telemetry
) -> "Completion":
    """The request to the policy. Raises `BadRequest`, `NotFound` and `ContextTooLong`."""
    body.check()
    if find_model(runtime, body.model) != "policy":
        raise BadRequest(
            f"Model {body.model} improves answers in a conversation: send it to /v1/chat/completions, or ask"
            " model policy.",
            param="model",
            code="unsupported_value",
        )
    if state := current.get():
        state.phase = "completion"
    return await Completion.start(body, runtime.models, telemetry)


class Completion:
    """One request. `start` refuses what cannot be served; then call `answer` or `stream` once."""

    lower = "Lower max_tokens or n, or send fewer or shorter prompts."

    @classmethod
    async def start(cls, body: CompletionRequest, models: Models, telemetry: Telemetry) -> "Completion":
        """Raises `BadRequest` and `ContextTooLong`."""
        engine = models.engine("policy")
        answers = Answers(
            engine,
            await prepare_all(engine, body.prompt),
            body.sampling(engine.defaults, body.logprobs),
            n=body.n or 1,
            max_tokens=body.max_tokens or COMPLETION_MAX_TOKENS,
            blame="prompt",
        )
        return cls(body, answers, telemetry)

    def __init__(self, body: CompletionRequest, answers: Answers, telemetry: Telemetry) -> None:
        self.body, self.answers, self.telemetry = body, answers, telemetry
        self.envelope = Envelope("cmpl", "text_completion", body.model)
        self._offsets = [0] * len(answers.counts)

    async def worst_case(self, *, exact: bool) -> int:
        """Tokens that it may read and write at most: its prompts are counted in any case."""
        return self.answers.worst_case([prompt.tokens or 0 for prompt in self.answers.prompts])

    @property
    def tokens_used(self) -> int:
        return self.answers.tokens_used

    async def answer(self) -> Response:
        """The whole answer."""
        choices = range(len(self.answers.counts))
        texts = [self._echo(number) for number in choices]
        reasons: list[str | None] = [None for _ in choices]
        logprobs: list[list[TokenLogprob]] = [[] for _ in choices]
        try:
            async with aclosing(self.answers.deltas()) as deltas:
                async for number, delta in deltas:
                    texts[number] += delta.text
                    logprobs[number] += delta.logprobs
                    reasons[number] = delta.finish_reason
        finally:
            self.telemetry.count("completion", self.answers.usage)
        found = [self._choice(n, texts[n], logprobs[n], reasons[n]) for n in choices]
        return self.envelope.answer(found, self.answers.usage)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as Server-Sent Events."""
        body = self.body
        usage = ChunkUsage(self.answers, at_end=body.with_usage, continuous=body.with_continuous_usage)
        chunks = stream_answers(self.envelope, self.answers, usage, self._first, self._chunk)
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self.telemetry.count("completion", self.answers.usage)

    def _echo(self, number: int) -> str:
        prompt = self.body.prompt[number // self.answers.n]
        return prompt if self.body.echo and isinstance(prompt, str) else ""

    def _first(self, number: int) -> str | None:
        echo = self._echo(number)
        return dumps(self._choice(number, echo, (), None)) if echo else None

    def _chunk(self, number: int, delta: Delta) -> str | None:
        if not delta.text and not delta.logprobs and delta.finish_reason is None:
            return None
        return dumps(self._choice(number, delta.text, delta.logprobs, delta.finish_reason))

    def _choice(
        self,
        number: int,
        text: str,
        tokens: "list[TokenLogprob] | tuple[TokenLogprob, ...]",
        finish_reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None:
            logprobs, self._offsets[number] = completion_logprobs(
                tokens, self.body.logprobs, self._offsets[number]
            )
        return {"text": text, "index": number, "logprobs": logprobs, "finish_reason": finish_reason}
