"""vLLM inside the server. Only the vllm*.py of this package import vllm, and only when an engine is built.

`AsyncLLM` runs its engine core in a process of its own. On a CPU that process is forked from this one after
everything is imported, and holds the worker too (the "uni" executor): a start takes seconds where vLLM's
own choice, two spawned processes that import everything again, takes a minute. That is why
`prepare_environment` sets VLLM_ENABLE_V1_MULTIPROCESSING=0: AsyncLLM keeps its own process in any case, and
the CPU platform then leaves the executor alone.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from app.checkpoint import Checkpoint, SamplingDefaults
from app.engines.base import Delta, Message, Prompt, Sampling, ToolCallDelta, Tools
from app.engines.chat import ChatEncoder
from app.engines.vllm_metrics import stat_logger
from app.engines.vllm_sampling import finish_reason, refused, sampling_params, token_logprobs
from app.engines.vllm_tools import ToolParsers, ToolPrompt, tool_dicts
from app.errors import CheckpointError, EngineFailed
from app.settings import Settings

log = logging.getLogger(__name__)
CPU_ENVIRONMENT = {
    # One OpenMP thread a process: two on a busy machine collapse. More is a matter of OMP_NUM_THREADS.
    "OMP_NUM_THREADS": "1",
    # Or the first request for logprobs compiles for 15 s.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}
SHUTDOWN_TIMEOUT_S = 5.0
"""After this an engine process that does not end by itself is killed."""
UNUSED = ("sklearn", "scipy", "pandas")
BLOCK_SIZE = 32
"""Tokens of a prefix cache block on a CPU; vLLM's default of 128 caches nothing of a short conversation."""


def prepare_environment(settings: Settings) -> None:
    """Set what vLLM reads from the environment, where the user has not. Call it before the first import of
    vllm."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.path.exists("/dev/nvidiactl"):
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.kv_cache_gib))


def import_engine() -> str:
    """Import vLLM and everything that an engine process needs, and return vLLM's version. Takes 10 to 25 s.

    Raises `CheckpointError` when there is no engine that can run here.
    """
    for name in ("vllm", "torch", "transformers"):
        warnings.filterwarnings("ignore", module=rf"{name}\.")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    try:
        with _lean_imports():
            import vllm
            from vllm.platforms import current_platform
            from vllm.v1.engine import async_llm, core  # noqa: F401

            if current_platform.is_cpu():
                # The engine processes are forked from this one: what is imported here is imported once.
                from vllm.model_executor.models import llama  # noqa: F401
                from vllm.v1.worker import cpu_worker  # noqa: F401
    except ImportError as error:
        missing = error.name or "vllm"
        raise CheckpointError(
            f"No engine is installed (the module {missing!r} is missing). Install one: pip install"
            " 'pit-serve[cpu]'"
            " on a machine without a GPU, pip install 'pit-serve[gpu]' with one."
        ) from None
    if not current_platform.device_type:
        raise CheckpointError(
            f"vLLM {vllm.__version__} here is the build for GPUs, and this machine shows none."
            " Check nvidia-smi, or install the CPU engine: pip install 'pit-serve[cpu]'."
        )
    return str(vllm.__version__)


@contextlib.contextmanager
def _lean_imports() -> Iterator[None]:
    """Import without what is not needed here: a fifth less time.

    transformers imports scikit-learn, SciPy and pandas wherever they are installed, for losses and for
    assisted generation; a module that is None counts as not installed. The garbage collector finds nothing
    among modules that stay, and looks again and again.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        for name in hidden:
            sys.modules.pop(name, None)


class VllmEngine:
    """One checkpoint in one AsyncLLM. See `Engine` for what the methods promise."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, llm: Any) -> None:
        self._llm = llm
        self._encoder = ChatEncoder(checkpoint.path)
        self._closed = False
        self.model_id = checkpoint.path.name
        self.context_length = checkpoint.context_length(settings.max_model_len)
        self.defaults: SamplingDefaults = checkpoint.sampling
        if self.defaults.max_tokens is None and checkpoint.manifest:
            self.defaults = replace(self.defaults, max_tokens=checkpoint.manifest.length_budget.response)
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
            # Or the handler finds a dead engine and logs it as a failure.
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()
            await asyncio.to_thread(self._llm.shutdown, timeout=SHUTDOWN_TIMEOUT_S)
            multiprocessing.active_children()  # reaps the processes that have ended

    def abandon(self) -> None:
        """Stop the engine that nobody waits for any more. Blocks."""
        self._closed = True
        self._llm.shutdown(timeout=SHUTDOWN_TIMEOUT_S)

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
            outputs = self._llm.generate(prompt, parameters, uuid.uuid4().hex)
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


class _ForkHooks(threading.local):
    """What to do around the fork of an engine, in the thread that forks it."""

    release: Callable[[], None] | None = None


_fork_hooks = _ForkHooks()
PR_SET_PDEATHSIG = 1


def _after_fork_in_child() -> None:
    """Make the new engine process independent of the server's signals, but not of its life."""
    if _fork_hooks.release is None:
        return
    # Ctrl-C reaches the whole process group: only the server may answer it, and it stops its engines itself.
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _after_fork_in_parent() -> None:
    release, _fork_hooks.release = _fork_hooks.release, None
    if release is not None:
        release()


os.register_at_fork(after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)


class EngineStarter:
    """Starts engines, side by side where their processes are forked. Call `close` when they have ended.

    Each engine is forked from a thread of its own that lives as long as the engine: the kernel kills a
    child that asked for it (PR_SET_PDEATHSIG) when the thread that forked it ends. So no engine outlives a
    server, however it is killed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._starting = threading.Lock()
        self._ended = threading.Event()
        self.metrics = CollectorRegistry() if settings.engine_metrics else None
        """What the engines count, each under its model's name."""
        self._names: dict[str, list[Path]] = {}

    async def start(
        self, checkpoint: Checkpoint, *, method: Literal["fork", "spawn"] | None = None
    ) -> VllmEngine:
        """Build the engine of a checkpoint; `method` None: as the settings say. Raises `CheckpointError`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[VllmEngine] = loop.create_future()

        def settle(engine: VllmEngine | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if engine is not None:
                done.set_result(engine)
            else:
                done.set_exception(error or RuntimeError("no engine"))

        def work() -> None:
            engine, failure = None, None
            try:
                llm = self._build(checkpoint, method or self._settings.engine_start)
                engine = VllmEngine(checkpoint, self._settings, llm)
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped while it started
                loop.call_soon_threadsafe(settle, engine, failure)
            if done.cancelled() and engine is not None:
                engine.abandon()
            elif engine is not None:
                self._ended.wait()

        threading.Thread(target=work, name=f"engine-{checkpoint.path.name}", daemon=True).start()
        try:
            return await done
        except CheckpointError:
            raise
        except Exception as error:
            log.error("the engine of %s did not start: %s: %s", checkpoint.path, type(error).__name__, error)
            raise CheckpointError(
                f"The engine could not be started with {checkpoint.path}: {str(error).splitlines()[0][:200]}"
                " Set VLLM_LOGGING_LEVEL=INFO to see its own messages."
            ) from error

    def close(self) -> None:
        """Let the threads end. An engine that is still alive, half started for one, dies with its thread."""
        self._ended.set()

    def _build(self, checkpoint: Checkpoint, method: str) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # One at a time up to the fork: the settings of vLLM's processes travel in environment variables.
        self._starting.acquire()
        _fork_hooks.release = self._starting.release
        try:
            config = AsyncEngineArgs(**self._arguments(checkpoint)).create_engine_config()
            # The CPU platform asks for "spawn" in every new configuration.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method
            if self.metrics is None:
                return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
            return AsyncLLM.from_vllm_config(config, stat_loggers=[stat_logger(self.metrics)])
        finally:
            _after_fork_in_parent()  # nothing was forked: spawned, or failed before

    def _arguments(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The engine's arguments for a checkpoint."""
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        dtype: str = self._settings.dtype
        if dtype == "auto":
            dtype = "float32" if on_cpu else checkpoint.dtype
        arguments: dict[str, Any] = {
            "model": str(checkpoint.path),
            "served_model_name": self._name(checkpoint),
            "max_model_len": checkpoint.context_length(self._settings.max_model_len),
            "dtype": dtype,
            "max_num_seqs": self._settings.max_num_seqs,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "use_tqdm_on_load": False,
            # Or a model may write white space without end where JSON allows it.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "seed": 0,
        }
        if on_cpu:
            return arguments | {"enforce_eager": True, "block_size": BLOCK_SIZE}
        return arguments | {"gpu_memory_utilization": self._settings.gpu_memory_utilization}

    def _name(self, checkpoint: Checkpoint) -> str:
        """The label of the engine's metrics: the directory's name, with a number where two have the same."""
        name = checkpoint.path.name
        paths = self._names.setdefault(name, [])
        if checkpoint.path not in paths:
            paths.append(checkpoint.path)
        number = paths.index(checkpoint.path)
        return f"{name}-{number + 1}" if number else name
