"""The peers: LiteLLM's proxy and optillm, each in a virtual environment of its own under .bench/, from PyPI.

optillm's package asks for torch, transformers, spaCy, gradio and more for approaches that are not measured
here. It is installed without its dependencies, and then with those that its proxy imports; plugins that miss
the others are left out by optillm itself, which makes it smaller and no slower.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.load.processes import ROOT, LoadError

HOME = ROOT / ".bench"
LITELLM = ("litellm[proxy]==1.108.7",)
OPTILLM = ("optillm==0.4.0",)
OPTILLM_NEEDS = (
    "flask", "openai", "cerebras_cloud_sdk", "networkx", "numpy", "z3-solver<=4.15.4.0", "aiohttp", "PyYAML",
    "requests", "sympy", "math-verify",
)  # fmt: skip
KEY = "sk-bench"


@dataclass(frozen=True)
class Peer:
    """How a peer is started in front of an upstream, and how it is asked."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    model: str
    ready: str
    home: Path
    key: str = KEY


def _environment(name: str, requirements: Sequence[str], *then: str) -> Path:
    """The directory of programs of an environment with these packages. Raises `LoadError`."""
    directory = HOME / name
    stamp = directory / "installed.json"
    wanted = json.dumps([*requirements, *then])
    if stamp.exists() and stamp.read_text() == wanted:
        return directory / "bin"
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    steps = [[sys.executable, "-m", "venv", "--clear", str(directory)]]
    steps += [[*pip, *requirements]] if not then else [[*pip, "--no-deps", *requirements], [*pip, *then]]
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            raise LoadError(f"the peer {name} could not be installed; delete {directory} and try again")
    stamp.write_text(wanted)
    return directory / "bin"


def litellm(upstream: str, port: int) -> Peer:
    """LiteLLM's proxy: one worker, a master key, its own logging left as it is by default."""
    programs = _environment("litellm", LITELLM)
    home = HOME / "litellm" / "home"
    home.mkdir(parents=True, exist_ok=True)
    config = home / f"config-{port}.json"  # YAML reads JSON
    parameters = {"model": "openai/mock", "api_base": f"{upstream}/v1", "api_key": "none"}
    models = [{"model_name": "mock", "litellm_params": parameters}]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
    command = (str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "127.0.0.1"}
    return Peer("LiteLLM", (*command, "--num_workers", "1"), env, "mock", "/health/liveliness", home)


def optillm(upstream: str, port: int, approach: str = "none") -> Peer:
    """optillm's proxy with one approach; `none` hands requests through."""
    programs = _environment("optillm", OPTILLM, *OPTILLM_NEEDS)
    home = HOME / "optillm" / "home"
    home.mkdir(parents=True, exist_ok=True)
    command = (str(programs / "optillm"), "--base-url", f"{upstream}/v1", "--port", str(port))
    options = ("--approach", approach, "--best-of-n", "3", "--log", "error", "--model", "mock")
    # The client's key is a flag: as OPTILLM_API_KEY it would start an inference of optillm's own.
    env = {"OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"}
    key_options = ("--optillm-api-key", "bench")  # a key that begins with sk- would be sent upstream
    return Peer("optillm", (*command, *options, *key_options), env, "mock", "/health", home, "bench")
