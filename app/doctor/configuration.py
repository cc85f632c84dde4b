"""The settings and the environment: unknown names, a port that is taken, an open door, harmful variables."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.doctor.report import Finding, fail, ok, warn
from app.doctor.roles import engines
from app.exposure import guard
from app.limits.limits import check_limits, redis_problem
from app.settings import Settings, SettingsError, load_settings, nearest_setting
from app.tracing import check_tracing

HURTFUL = {
    "PROMETHEUS_MULTIPROC_DIR": "metrics are written to files of that directory instead of /metrics",
    "VLLM_TRACE_FUNCTION": "vLLM writes every function call to a file",
    "CUDA_LAUNCH_BLOCKING": "every GPU kernel is waited for",
    "TRANSFORMERS_CACHE": "it is obsolete, and is read in place of HF_HOME",
}
"""Variables that slow or change the server wherever they are set and not 0, and what they do."""


def load(config: Path | None, given: dict[str, Any]) -> tuple[Settings | None, list[Finding]]:
    """The settings as `pit serve` would read them, None where they cannot be read, and what was found."""
    try:
        settings = load_settings(config, **given)
        check_tracing(settings)
        check_limits(settings)
    except SettingsError as error:
        advice = "mend the option, the variable or the file that sets it; pit serve --help lists them"
        return None, [fail("settings", str(error), advice), *_environment()]
    source = f", {config} read" if config else ""
    return settings, [
        ok("settings", f"valid{source}"), *_address(settings), *_limits(settings), *_files(settings),
        *_environment(), *_cpu_environment(settings),
    ]  # fmt: skip


def _limits(settings: Settings) -> Iterator[Finding]:
    """Whether the limits' Redis answers. Its address may hold a password, and is not shown."""
    if settings.limits_url is None:
        return
    if problem := redis_problem(settings.limits_url):
        yield warn(
            "limits",
            f"their Redis cannot be used ({problem}): each server would count alone",
            "start it, or mend limits_url",
        )
    else:
        yield ok("limits", "their Redis answers")


def _files(settings: Settings) -> Iterator[Finding]:
    """Whether the largest file can be uploaded at all."""
    most, largest = settings.max_files_bytes_per_key, settings.max_file_bytes
    if settings.database != "none" and 0 < most < largest:
        yield warn(
            "files",
            f"max_files_bytes_per_key is {most}: no file of max_file_bytes, {largest}, can be uploaded",
            "raise the first, or lower the second",
        )


def _address(settings: Settings) -> Iterator[Finding]:
    """Whether the port can be taken, who could reach it, and whether they need keys."""
    place = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        yield ok("address", f"{place} is free")
    except OSError as error:
        yield fail("address", f"{place}: {error.strerror or error}", "choose another --host or --port")
        return
    try:
        asked = guard(settings, str(address[0])).require_keys == "always"
    except SettingsError as error:
        yield fail("API keys", str(error), "make a key, or listen on 127.0.0.1")
        return
    if not asked and not ipaddress.ip_address(address[0]).is_loopback:
        yield warn(
            "API keys",
            f"{settings.host} is reachable from other machines, and no API key is asked for",
            "let nobody reach it but a gateway that authenticates",
        )


def _environment() -> Iterator[Finding]:
    for name in sorted(os.environ):
        if name.startswith("PIT_") and (setting := name.removeprefix("PIT_").lower()) not in KNOWN:
            hint = nearest_setting(setting).replace("'", "")
            yield warn(name, f"is no setting, and is ignored{hint}", "rename or unset it")
    for name, effect in HURTFUL.items():
        if os.environ.get(name, "0") not in ("", "0"):
            yield warn(name, f"is set: {effect}", f"unset {name}")
    if os.environ.get("VLLM_LOGGING_LEVEL", "").upper() == "DEBUG":
        yield warn("VLLM_LOGGING_LEVEL", "is DEBUG: vLLM may log requests", "use INFO at most in production")
    if os.environ.get("HF_HUB_OFFLINE") == "0":
        yield warn(
            "HF_HUB_OFFLINE",
            "is 0: a start may ask the model hub and wait for it",
            "unset it: checkpoints are directories, nothing has to be fetched",
        )


KNOWN = set(Settings.model_fields) | {"api_key"}
"""Names after PIT_ that the server or the command line reads."""


def _cpu_environment(settings: Settings) -> Iterator[Finding]:
    """What matters where engines compute on a CPU."""
    if os.path.exists("/dev/nvidiactl"):
        return
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    number = engines(settings) or 1
    if not threads.isdecimal() or int(threads) < 1:
        yield warn("OMP_NUM_THREADS", f"is {threads!r}, which is no number of threads", "set it to 1")
    elif int(threads) > 1 and int(threads) * number > cores:
        yield warn(
            "OMP_NUM_THREADS",
            f"is {threads}: {number} engines would use {int(threads) * number} threads on {cores} cores,"
            " which makes them collapse",
            f"set it to {max(1, cores // number)}",
        )
    cache = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if cache and cache != str(settings.kv_cache_gib):
        yield warn(
            "VLLM_CPU_KVCACHE_SPACE",
            f"is {cache}, which wins over kv_cache_gib {settings.kv_cache_gib}",
            "unset it, and use --kv-cache-gib",
        )
    for name, bad, effect in (
        ("TORCHDYNAMO_DISABLE", "0", "the first request for log-probabilities compiles for 15 s"),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "1", "a start takes half a minute longer"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn", "the setting engine_start decides, and not this"),
    ):
        if os.environ.get(name) == bad:
            yield warn(name, f"is {bad}: {effect}", f"unset {name}")
