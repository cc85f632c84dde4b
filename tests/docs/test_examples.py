"""Every file in examples/ runs against a server, and says what it promises."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples").iterdir() if p.suffix in (".py", ".sh"))
NEEDS = {"langchain_chat.py": "langchain_openai", "dspy_program.py": "dspy", "openai_client.py": "openai"}
SAYS = {
    "client_sync.py": ("-- accepted", "== ", "better than the draft with probability"),
    "client_async.py": ("What color is it?", "is  Red. Thank you."),
    "openai_client.py": ("It costs 24 euros, I think. Thank you.",),
    "langchain_chat.py": ("It costs 24 euros, I think. Thank you.",),
    "dspy_program.py": ("was ", "is  "),
    "curl.sh": ('"object":"improvement"', "event: run.completed", '"object":"list"', '"pairs":0'),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.name))
def test_it_runs(
    url: str, example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = NEEDS.get(example.name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install {needed.replace('_', '-')}")
    if example.suffix == ".py":  # in this process: each of its own would import everything anew
        monkeypatch.setattr(sys, "argv", [str(example), url])
        runpy.run_path(str(example), run_name="__main__")
        said = capsys.readouterr().out
    else:
        done = subprocess.run(
            ["bash", str(example), url], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    assert [part for part in SAYS[example.name] if part not in said] == []
