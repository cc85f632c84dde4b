"""The machine: Python, cores, disk, GPU, shared memory, libnuma."""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from app.doctor.report import Finding, fail, ok, warn
from app.doctor.roles import engines
from app.settings import Settings

GIB = 2**30
GPU_TIMEOUT_S = 1.0


def check(settings: Settings) -> Iterator[Finding]:
    yield _python()
    yield _cores(settings)
    yield _disk()
    yield _gpu()
    yield _shared_memory()
    yield _numa()


def _python() -> Finding:
    place = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return warn("python", place, "engines are only tried on Linux")
    return ok("python", place)


def _cores(settings: Settings) -> Finding:
    cores = len(os.sched_getaffinity(0))
    if not has_gpu() and cores < (number := engines(settings)):
        return warn(
            "cores",
            f"{cores} for {number} engines, which will take turns",
            "give the process more cores, or one checkpoint of role policy+improver",
        )
    return ok("cores", f"{cores} usable")


def _disk() -> Finding:
    here = Path.cwd()
    try:
        free = shutil.disk_usage(here).free
    except OSError as error:
        return warn("disk", f"{here}: {error.strerror}", "start the server in a directory that can be read")
    if free < GIB:
        return warn("disk", f"{free / GIB:.1f} GiB free in {here}", "free a gibibyte for logs and runs")
    return ok("disk", f"{free / GIB:.0f} GiB free in {here}")


def has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")


def _gpu() -> Finding:
    if not has_gpu():
        return ok("gpu", "none: engines compute on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = f"there is one, and nvidia-smi failed ({type(error).__name__})"
        return warn("gpu", said, "check the driver")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return warn("gpu", "hidden: CUDA_VISIBLE_DEVICES is empty", "unset CUDA_VISIBLE_DEVICES")
    return ok("gpu", "; ".join(done.stdout.split("\n")).strip("; "))


def _shared_memory(path: str = "/dev/shm") -> Finding:
    advice = "mount it with more: docker run --shm-size=1g, or an emptyDir of medium Memory at /dev/shm"
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return fail(path, f"cannot be used ({error.strerror}); engines talk through it", advice)
    if not os.access(path, os.W_OK):
        return fail(path, "cannot be written to; engines talk through it", advice)
    if free < 64 * 2**20:
        return warn(path, f"{free / 2**20:.0f} MiB free", advice)
    return ok(path, f"{free / GIB:.1f} GiB free")


def _numa(library: str = "libnuma.so.1") -> Finding:
    try:
        ctypes.CDLL(library)
    except OSError:
        if has_gpu():
            return ok("libnuma", "not installed, and only the CPU engine needs it")
        return fail("libnuma", f"{library} is missing; the CPU engine needs it", "apt-get install libnuma1")
    return ok("libnuma", "found")


def memory_limit() -> tuple[int, int]:
    """Bytes that this process may use in all, and bytes that are free now; by the container's limit too."""
    values: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    total, free = values["MemTotal"], values["MemAvailable"]
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        if limit != "max":
            total = min(total, int(limit))
            free = min(free, int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no cgroup v2: the machine's own figures hold
    return total, free
