"""Settings come from four places in a fixed order; the command line is quick and says what is wrong in one
line."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import __version__
from app.cli import app
from app.server import first_command
from app.settings import SettingsError, load_settings
from tests.app.fakes import fake_models
from tests.app.live import server_in_a_thread

ROOT = Path(__file__).resolve().parents[2]


def pit(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_command_line_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pit.yaml"
    file.write_text("port: 1111\nhost: file\nmax-num-seqs: 3\n")
    assert load_settings().port == 8000
    assert load_settings(file).port == 1111
    monkeypatch.setenv("PIT_PORT", "2222")
    assert load_settings(file).port == 2222
    assert load_settings(file, port=3333, host=None).port == 3333
    assert (load_settings(file, port=3333).host, load_settings(file).max_num_seqs) == ("file", 3)


def test_a_wrong_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pit.yaml"
    for content, said in (
        ("prot: 1", "prot"),
        ("port: many", "port"),
        ("- a", "setting: value"),
        ("a: [", "YAML"),
    ):
        file.write_text(content)
        with pytest.raises(SettingsError, match=said):
            load_settings(file)
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(tmp_path / "nowhere.yaml")
    monkeypatch.setenv("PIT_PORT", "99999")
    with pytest.raises(SettingsError, match="port"):
        load_settings()


def test_help_imports_no_engine() -> None:
    assert "improve" in pit("--help").stdout
    code = "import sys, app.cli, app.server; sys.exit(any(m in sys.modules for m in ('torch', 'vllm')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_version() -> None:
    assert CliRunner().invoke(app, ["version"]).stdout == f"pit-serve {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "Nothing to serve"),
        (["serve", "--policy", "nowhere"], "does not exist"),
        (["serve", "--policy", "nowhere", "--port", "99999"], "port"),
        (["serve", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_serve_says_what_is_wrong_in_one_line_and_exits_with_2(arguments: list[str], said: str) -> None:
    done = pit(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_improve_says_when_no_server_answers() -> None:
    done = pit("improve", "Hello", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "no server answers at http://127.0.0.1:9" in done.stderr
    assert "pit serve" in done.stderr
    assert pit("improve", "Hello", "--url", "nonsense").returncode == 1


@pytest.mark.parametrize("improver", (True, False))
def test_what_a_start_proposes_to_type_is_not_refused(improver: bool) -> None:
    """Also where there is no improver: a policy alone refines its own answers."""
    models = replace(fake_models(), scorer=None)
    if not improver:
        models = replace(models, improver=None)
    with server_in_a_thread(models, database="none") as url:
        program, *words = shlex.split(first_command(models, url))
        done = CliRunner().invoke(app, words)
    assert program == "pit" and done.exit_code == 0, done.output
