"""The Dockerfile against the project: what it copies, installs, starts and asks is there. `make image-check`
executes it."""

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from app import __version__
from app.access import need
from app.server import LEFT_S
from app.settings import Settings
from scripts import setup
from tests.deploy import dockerfile
from tests.deploy.dockerfile import DOCKERFILE, ROOT, Stage
from tests.faults.server import fake_server
from tests.ports import free_port

TARGETS = ("gateway", "cpu", "gpu")
TEXT = DOCKERFILE.read_text(encoding="utf-8")
STAGES = dockerfile.stages(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPILERS = {
    "gcc",
    "g++",
    "clang",
    "build-essential",
    "make",
    "python3-dev",
    "libc6-dev",
    "python3-pip",
    "python3-venv",
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def word(target: str, name: str) -> list[str]:
    found = dockerfile.last(STAGES, target, name)
    assert found, f"{target} has no {name}"
    return found.words()


def packages(stages: list[Stage]) -> set[str]:
    """Debian's, that their RUN lines install."""
    lines = " ".join(one.rest for stage in stages for one in stage.all("RUN"))
    return {
        name
        for part in re.findall(r"apt-get install ([^&]*)", lines)
        for name in part.split()
        if name[0] != "-"
    }


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last line that matches it or a folder above."""
    allowed = True
    above = [str(parent) for parent in Path(path).parents if str(parent) != "."]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            names = [path, *above] if not line.startswith("**/") else path.split("/")
            if any(fnmatch.fnmatch(name, pattern) for name in names):
                allowed = line.startswith("!")
    return allowed


def test_the_base_is_one_image_for_ever() -> None:
    outside = {stage.parent for stage in STAGES.values()} - set(STAGES)
    assert len(outside) == 1
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", outside.pop())
    assert setup.UV in TEXT, "another uv than that of make setup"


def test_what_is_copied_is_there_and_sent() -> None:
    for stage in STAGES.values():
        for one in stage.all("COPY"):
            *sources, _ = one.words()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in STAGES
            else:
                assert all((ROOT / name).exists() and sent(name) for name in sources), sources
    assert sent("app/store/migrations/env.py") and sent("app/limits/admit.lua")


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        "keys",
        ".git/config",
        "runs/demo/policy/model.safetensors",
        "tests/tiny.py",
        "app/__pycache__/a.pyc",
    ],
)
def test_nothing_else_is_sent(name: str) -> None:
    assert not sent(name)


def test_extras_are_the_projects_and_pins_hold() -> None:
    extras = {name for name in re.findall(r"--extra (\S+)", TEXT)}
    assert {"postgres", "redis", "otel", "cpu", "gpu"} == extras <= set(PROJECT["optional-dependencies"])
    for name in ("gateway", "cpu"):
        installs = [one.rest for one in STAGES[f"build-{name}"].all("RUN") if "--extra" in one.rest]
        assert installs and all("--constraints constraints.txt" in line for line in installs)
    assert "--overrides overrides.txt" in " ".join(one.rest for one in STAGES["build-cpu"].all("RUN"))


def test_it_starts_the_server_as_a_user_without_rights(target: str) -> None:
    assert word(target, "ENTRYPOINT")[0] in PROJECT["scripts"] and word(target, "CMD") == ["serve"]
    assert word(target, "USER") == ["10001:10001"], "a number: Kubernetes cannot see that a name is not root"
    assert {"/tmp", dockerfile.environment(STAGES, target)["HOME"]} == set(word(target, "VOLUME"))


def test_its_settings_are_the_servers(target: str) -> None:
    environment = dockerfile.environment(STAGES, target)
    given = {name[4:].lower(): value for name, value in environment.items() if name.startswith("PIT_")}
    settings = Settings(**given)  # type: ignore[arg-type]  # the text of variables
    assert settings.host == "0.0.0.0" and [str(settings.port)] == word(target, "EXPOSE")
    assert settings.database.startswith(f"sqlite:///{environment['HOME']}/")


def test_nothing_secret_and_no_compiler_stays(target: str) -> None:
    last_stages = dockerfile.lineage(STAGES, target)
    assert not packages(last_stages) & COMPILERS
    assert "ca-certificates" in packages(last_stages), "https upstreams need them"
    names = " ".join(
        one.rest for stage in STAGES.values() for word in ("ENV", "ARG", "LABEL") for one in stage.all(word)
    )
    assert not re.search("secret|token|password|api_key", names, re.IGNORECASE)


def test_the_health_check_tells_a_server_from_none(tmp_path: Path) -> None:
    found = dockerfile.last(STAGES, "gateway", "HEALTHCHECK")
    assert found
    command = dockerfile.Instruction("CMD", found.rest.partition(" CMD ")[2]).words()
    path = re.findall(r"'(/[a-z/]+)'", command[-1])[0]
    assert need(path) == "open"
    command[0] = sys.executable
    port = free_port()
    environment = {**os.environ, "PIT_PORT": str(port)}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    with fake_server(tmp_path, port=port, database="none"):
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


def test_tritons_module_is_handed_out_and_nothing_else_is_compiled(tmp_path: Path) -> None:
    """deploy/image/triton-cc, called as Triton calls a compiler."""
    there = tmp_path / "venv"
    (there / "bin").mkdir(parents=True)
    (there / "lib").mkdir()
    program = there / "bin" / "triton-cc"
    program.write_bytes((ROOT / "deploy/image/triton-cc").read_bytes())
    program.chmod(0o755)
    (there / "lib/triton-driver.so").write_bytes(b"compiled")
    made = tmp_path / "cuda_utils.so"
    options = ["-O3", "-shared", "-fPIC", "-Wno-psabi", "-o", str(made), "-l:libcuda.so.1", "-I/include"]
    assert subprocess.run([program, "/a/driver.c", *options]).returncode == 0
    assert made.read_bytes() == b"compiled"
    other = subprocess.run([program, "/a/launcher.c", *options], capture_output=True, text=True)
    assert other.returncode == 1 and "launcher.c" in other.stderr and "docs/container.md" in other.stderr
    assert dockerfile.environment(STAGES, "gpu")["CC"] == "/venv/bin/triton-cc"
    # Linked with an empty library, the module would not name the driver's as one that it needs.
    assert "-Wl,--no-as-needed -l:libcuda.so.1" in STAGES["build-gpu"].instructions[1].rest


def test_pages_name_this_version() -> None:
    for file in (DOCKERFILE, ROOT / "docs/container.md"):
        tags = re.findall(r"pit-serve-\w+:(\d\S*)", file.read_text(encoding="utf-8"))
        assert tags and set(tags) == {__version__}, file


def test_the_compose_file_says_what_the_images_and_the_server_have() -> None:
    found = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = found["services"]
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in TARGETS
        for mount in service.get("volumes", []):
            source = mount.rpartition("}")[2] or mount
            assert source.startswith(":/models") or source.split(":")[0] in found["volumes"], name
        if service["image"].startswith("pit-serve"):
            assert service["image"].endswith(f":{__version__}") and service["read_only"]
            assert service["cap_drop"] == ["ALL"]
    given = services["gateway"]["environment"]
    values = {name[4:].lower(): re.sub(r"\$\{.*?\}", "x" * 40, value) for name, value in given.items()}
    settings = Settings(**values)  # type: ignore[arg-type]
    urls = {*settings.policy_url, *settings.improver_url, *settings.gap_reward_url}
    assert {url.removeprefix("http://").partition(":")[0] for url in urls} <= set(services)
    for url in urls:
        host, _, port = url.removeprefix("http://").partition(":")
        assert f"--port={port}" in services[host]["command"]
    assert services["gateway"]["ports"] == [f"127.0.0.1:8000:{settings.port}"]
    seconds = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert seconds > settings.shutdown_grace_s + 2 * LEFT_S
