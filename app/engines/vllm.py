"""Generation by vLLM inside the server. Only the vllm*.py of this package import vllm, and only when an
engine is built (vllm_start.py)."""

import asyncio
import contextlib
import logging
import multiprocessing
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from app.checkpoint import Checkpoint, SamplingDefaults
from app.engines.base import Delta, Message, Prompt, Sampling, ToolCallDelta, Tools
from app.engines.chat import ChatEncoder
from app.engines.vllm_arguments import ADAPTER
from app.engines.vllm_sampling import finish_reason, refused, sampling_params, token_logprobs
from app.engines.vllm_tools import ToolParsers, ToolPrompt, tool_dicts
from app.errors import EngineFailed
from app.settings import Settings

log = logging.getLogger(__name__)
SHUTDOWN_TIMEOUT_S = 5.0
"""After this an engine process that does not end by itself is killed."""


class VllmEngine:
    """One checkpoint in one AsyncLLM. See `Engine` for what the methods promise.

    `adapter`: the engine holds a base model, and this checkpoint is an adapter over it (its number in the
    engine, from 1).
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, llm: Any, *, adapter: int | None = None
    ) -> None:
        self._llm = llm
        self._lora = None if adapter is None else _lora_request(checkpoint, adapter)
        self._encoder = ChatEncoder(checkpoint.path)
        self._closed = False
        self.model_id = checkpoint.path.name
        self.context_length = checkpoint.context_length(settings.max_model_len)
        self.defaults: SamplingDefaults = checkpoint.sampling
        self.float32 = "float32" in str(llm.model_config.dtype)
        self._tools = ToolParsers(settings.tool_call_parser, llm.get_tokenizer(), llm.model_config)

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        if tools is None:
            ids = self._encoder.encode(messages, generation_prompt=True)
            return Prompt(ids, len(ids))
        self._tools.check(tools)
        ids = self._encoder.encode(messages, generation_prompt=True, tools=tool_dicts(tools))
        return Prompt(ids if tools.choice == "none" else ToolPrompt(ids, tools), len(ids))

    async def prepare_text(self, text: str | Sequence[int]) -> Prompt:
        ids = self._encoder.encode_text(text) if isinstance(text, str) else list(text)
        return Prompt(ids, len(ids))

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encoder.encode(messages, generation_prompt=True)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        content = prompt.content
        if isinstance(content, ToolPrompt):
            calls = self._tools.start(content, sampling.constraint)
            ids, parameters = content.ids, sampling_params(
                sampling,
                structured_outputs=calls.structured_outputs,
                skip_special_tokens=calls.skip_special_tokens,
            )
        else:
            assert isinstance(content, list)
            calls, ids, parameters = None, content, sampling_params(sampling)
        async with contextlib.aclosing(self._stream(ids, parameters)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                text, reason = completion.text, finish_reason(completion.finish_reason)
                called: tuple[ToolCallDelta, ...] = ()
                if calls is not None:
                    text, called, reason = calls.read(text, completion.token_ids, reason)
                yield Delta(
                    text=text,
                    tokens=len(completion.token_ids),
                    finish_reason=reason,
                    cached_tokens=output.num_cached_tokens or 0,
                    logprobs=token_logprobs(completion.token_ids, completion.logprobs),
                    tool_calls=called,
                )

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ids = [*prompt_ids, *completion_ids]
        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        last: Any = None
        async with contextlib.aclosing(self._stream(ids, parameters)) as outputs:
            async for output in outputs:
                last = output
        if last is None or last.prompt_logprobs is None:
            raise EngineFailed("The engine gave no log-probabilities.")
        rows = last.prompt_logprobs[len(prompt_ids) :]
        return [float(row[token].logprob) for row, token in zip(rows, completion_ids, strict=True)]

    async def check_health(self) -> None:
        if self._closed or self._llm.errored:
            raise EngineFailed("The engine process has ended.")

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await stop(self._llm)

    async def _stream(self, prompt_ids: Sequence[int], parameters: Any) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for token ids. AsyncLLM aborts the request when its generator is closed or
        cancelled."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._closed:
            raise EngineFailed("The engine is stopped.")
        prompt = tokens_input(list(prompt_ids))
        prompt["arrival_time"] = time.time()
        try:
            outputs = self._llm.generate(prompt, parameters, uuid.uuid4().hex, lora_request=self._lora)
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output
        except EngineDeadError:
            raise EngineFailed(
                "The engine process has ended. Try again when /health/ready answers 200."
            ) from None
        except VLLMClientError as error:
            raise refused(error) from None
        except EngineGenerateError as error:
            log.error("generation failed: %s", type(error.__cause__).__name__)
            raise EngineFailed("The engine failed to generate this response.") from None


def _lora_request(checkpoint: Checkpoint, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    path = checkpoint.path / ADAPTER
    return LoRARequest(lora_name=f"{number}-{checkpoint.path.name}", lora_int_id=number, lora_path=str(path))


async def stop(llm: Any) -> None:
    """End an AsyncLLM and its process. An engine that several checkpoints share is ended once."""
    if getattr(llm, "pit_stopped", False):
        return
    llm.pit_stopped = True
    # Or the handler finds a dead engine and logs it as a failure.
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    await asyncio.to_thread(llm.shutdown, timeout=SHUTDOWN_TIMEOUT_S)
    multiprocessing.active_children()  # reaps the processes that have ended
