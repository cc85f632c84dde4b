"""Starting vLLM inside the server.

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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import CollectorRegistry

from app.engines.vllm import SHUTDOWN_TIMEOUT_S
from app.engines.vllm_metrics import stat_logger
from app.errors import CheckpointError
from app.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
CPU_ENVIRONMENT = {
    # One OpenMP thread a process: two on a busy machine collapse. More is a matter of OMP_NUM_THREADS.
    "OMP_NUM_THREADS": "1",
    # Or the first request for logprobs compiles for 15 s.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # n-gram speculation: more threads than one only compete.
    "NUMBA_NUM_THREADS": "1",
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}
UNUSED = ("sklearn", "scipy", "pandas")


def prepare_environment(settings: Settings) -> None:
    """Set what vLLM reads from the environment, where the user has not. Call it before the first import of
    vllm."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if on_cpu():
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.kv_cache_gib))


def on_cpu() -> bool:
    """Whether this machine shows no GPU."""
    return not os.path.exists("/dev/nvidiactl")


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
            " 'pit-serve[gpu]' on a machine with a GPU, make setup in a clone of the project on one without."
        ) from None
    if not current_platform.device_type:
        raise CheckpointError(
            f"vLLM {vllm.__version__} here is the build for GPUs, and this machine shows none."
            " Check nvidia-smi, or install the CPU engine: make setup in a clone of the project."
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


class _ForkHooks(threading.local):
    """What to do around the fork of an engine, in the thread that forks it."""

    release: Callable[[], None] | None = None


_fork_hooks = _ForkHooks()
PR_SET_PDEATHSIG = 1


def _after_fork_in_child() -> None:
    """Make the new engine process independent of the server's signals, but not of its life."""
    if _fork_hooks.release is None:
        return
    signal.set_wakeup_fd(-1)
    _bind_to_server()


def _bind_to_server() -> None:
    """In an engine's process: deaf to the server's Ctrl-C, and gone when the server is."""
    # Ctrl-C reaches the whole process group: only the server may answer it, and it stops its engines itself.
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_spawned_engine(*arguments: Any, **named: Any) -> None:
    """What a spawned engine process runs: vLLM's own loop, bound to the server that spawned it."""
    _bind_to_server()
    server = multiprocessing.parent_process()
    if server is None or os.getppid() != server.pid:
        return  # it ended meanwhile
    from vllm.v1.engine.core import EngineCoreProc

    EngineCoreProc.run_engine_core(*arguments, **named)


@contextlib.contextmanager
def _spawning() -> Iterator[None]:
    """Engine processes that are spawned in the body run `run_spawned_engine`. vLLM itself watches no parent:
    an engine would outlive a server that is killed. (A fork is bound by the hook below.)"""
    from vllm.v1.engine.core import EngineCoreProc

    own = EngineCoreProc.run_engine_core
    EngineCoreProc.run_engine_core = run_spawned_engine
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(own)


def _after_fork_in_parent() -> None:
    release, _fork_hooks.release = _fork_hooks.release, None
    if release is not None:
        release()


os.register_at_fork(after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)


class EngineStarter:
    """Starts engines, side by side where their processes are forked. Call `close` when they have ended.

    Each engine is forked or spawned from a thread of its own that lives as long as the engine: the kernel
    kills a child that asked for it (PR_SET_PDEATHSIG) when the thread that started it ends. So no engine
    outlives a server, however it is killed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._starting = threading.Lock()
        self._ended = threading.Event()
        self.metrics = CollectorRegistry() if settings.engine_metrics else None
        """What the engines count, each under its model's name."""
        self._names: dict[str, list[str]] = {}

    async def start(
        self,
        name: str,
        arguments: dict[str, Any],
        make: Callable[[Any], T],
        *,
        method: Literal["fork", "spawn"] | None = None,
    ) -> T:
        """Build an AsyncLLM and what `make` makes of it, away from the event loop; `method` None: as the
        settings say. Raises `CheckpointError`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(made: list[T], error: Exception | None) -> None:
            if done.cancelled():
                return
            if made:
                done.set_result(made[0])
            else:
                done.set_exception(error or RuntimeError("no engine"))

        def work() -> None:
            made: list[T] = []
            llm, failure = None, None
            try:
                llm = self._build(arguments, method or self._settings.engine_start)
                made.append(make(llm))
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped while it started
                loop.call_soon_threadsafe(settle, made, failure)
            if done.cancelled() and llm is not None:
                llm.shutdown(timeout=SHUTDOWN_TIMEOUT_S)  # nobody waits for it any more
            elif made:
                self._ended.wait()

        threading.Thread(target=work, name=f"engine-{name}", daemon=True).start()
        try:
            return await done
        except CheckpointError:
            raise
        except Exception as error:
            log.error("the engine of %s did not start: %s: %s", name, type(error).__name__, error)
            raise CheckpointError(
                f"The engine could not be started with {name}: {str(error).splitlines()[0][:200]}"
                " Set VLLM_LOGGING_LEVEL=INFO to see its own messages."
            ) from error

    def close(self) -> None:
        """Let the threads end. An engine that is still alive, half started for one, dies with its thread."""
        self._ended.set()

    def _build(self, arguments: dict[str, Any], method: str) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # One at a time up to the fork: the settings of vLLM's processes travel in environment variables.
        self._starting.acquire()
        _fork_hooks.release = self._starting.release
        try:
            named = {"served_model_name": self._name(str(arguments["model"]))} | arguments
            config = AsyncEngineArgs(**named).create_engine_config()
            # The CPU platform asks for "spawn" in every new configuration.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = method
            stats: dict[str, Any] = {"disable_log_stats": True}
            if self.metrics is not None:
                stats = {"stat_loggers": [stat_logger(self.metrics)]}
            with _spawning() if method == "spawn" else contextlib.nullcontext():
                return AsyncLLM.from_vllm_config(config, **stats)
        finally:
            _after_fork_in_parent()  # nothing was forked: spawned, or failed before

    def _name(self, model: str) -> str:
        """The label of an engine's metrics: the directory's name, with a number where two have the same."""
        name = Path(model).name
        models = self._names.setdefault(name, [])
        if model not in models:
            models.append(model)
        number = models.index(model)
        return f"{name}-{number + 1}" if number else name
