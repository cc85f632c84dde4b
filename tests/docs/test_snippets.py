"""Every fenced block of the documentation is what it says: Python runs, commands run or are parsed by the
program that they call, data parses. tests/docs/commands.py lists what is done with which command."""

import ast
import importlib.util
import json
import os
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.docs.commands import CHECKED, RUN, Place, lines, rule, words_of
from tests.docs.pages import ROOT, Block, blocks
from training.errors import ConfigError

ELSEWHERE = {
    ("docs/reliability.md", "nginx"): "tests/faults/test_shutdown.py starts nginx with it",
    ("docs/container.md", "dockerfile"): "for a reader with a container engine; the project's own is tested",
}
OTHERS = {"dspy": "", "litellm": "", "tensorzero": "needs TensorZero's gateway"}
"""Packages of others, and why what they show is not run even where they are installed."""
SHORTER = {"range(10, 60)": "range(10, 12)"}
"""What a reader does 150 times and a test a few times."""
QUESTION = {"messages": [{"role": "user", "content": "What about the price?"}], "reference": "It is red."}


@pytest.fixture(scope="module")
def place(url: str, run: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A directory with the files that commands name."""
    directory = tmp_path_factory.mktemp("snippets")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/improve", "body": QUESTION}
    (directory / "input.jsonl").write_text(json.dumps(line) + "\n")
    (directory / "better.txt").write_text("The price is 24 euros.\n")
    (directory / "questions.txt").write_text("What about the price?\n")
    chat = [{"role": role, "content": text} for role, text in (("user", "Price?"), ("assistant", "24"))]
    pair = {"prompt": chat[:1], "chosen": chat[1:], "rejected": [{"role": "assistant", "content": "No."}]}
    other = pair | {"prompt": [{"role": "user", "content": "Color?"}]}
    data = directory / "data"
    data.mkdir()
    for name in ("train.jsonl", "dev.jsonl"):
        (data / name).write_text(json.dumps(pair if name == "dev.jsonl" else other) + "\n")
    (directory / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    return Place(url, run, directory, f"sqlite:///{directory}/keys.db", {"DIR/": f"{data}/"})


@pytest.fixture(autouse=True)
def in_the_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.directory)
    monkeypatch.setenv("PIT_DATABASE", place.database)


def test_every_block_says_its_language() -> None:
    known = {"sh", "python", "json", "yaml", "nginx", "", "promql", "mermaid", "math", "dockerfile"}
    assert [f"{b}: {b.language}" for b in blocks() if b.language not in known] == []
    others = blocks("nginx", "promql", "mermaid", "math", "dockerfile")
    assert {(block.page, block.language) for block in others} == set(ELSEWHERE)
    # What is to be typed does not hide in a block without a language.
    typed = {each.words.split()[0] for each in (*RUN, *CHECKED)} | {"$", "import", "from"}
    plain = [(block, line) for block in blocks("") for line in block.text.splitlines()]
    assert [f"{block}: {line}" for block, line in plain if {*line.split(" ")[:1]} & typed] == []


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, place: Place) -> None:
    """As a file: some libraries read the source of the functions that they are given."""
    tree = ast.parse(block.text)
    imported = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    missing = {name for name in imported if importlib.util.find_spec(name) is None}
    assert missing <= OTHERS.keys(), missing
    text = place.filled(block.text)
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    compile(text, str(block), "exec")
    for name in sorted(imported & OTHERS.keys()):
        if OTHERS[name] or name in missing:
            pytest.skip(f"{name}: {OTHERS[name] or f'pip install {name} to have it run'}; it compiles")
    file = place.directory / "snippet.py"
    file.write_text(text)
    runpy.run_path(str(file), run_name="__main__")


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands(block: Block, place: Place) -> None:
    syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert syntax.returncode == 0, syntax.stderr
    for command in lines(block.text):
        given, words = words_of(place.filled(command))
        if not words:
            continue
        found = rule(words)
        if found.check:
            found.check(words)
        else:
            execute(place, command, words, given)


def execute(place: Place, command: str, words: list[str], given: dict[str, str]) -> None:
    if words[0] in ("curl", "python", "examples/curl.sh"):
        text = place.filled(command).replace("examples/", f"{ROOT}/examples/")
        if words[0] == "curl":
            text = text.replace("curl ", "curl --fail-with-body --max-time 60 ", 1)
        env = os.environ | {"PIT_API_KEY": "none"} | given
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert not set(words) & {"|", "&&", ">", "<", ";"}, f"say in tests/docs what to do with: {command}"
    if words[0] == "pit-train":
        invoke(words, given)
        return
    if words[:2] == ["pit", "keys"] and "revoke" in words:  # a key that is there, in place of the page's
        words = [*words[:-1], key_id(place)]
    if "--follows" in words:
        words[words.index("--follows") + 1] = key_id(place)
    takes_url = words[1] in ("improve", "runs", "replay", "feedback", "batch", "bench")
    if takes_url and "--url" not in words:
        words += ["--url", place.url]
    if words[1] == "bench":
        words += ["--requests", "2", "--concurrency", "1"]
    invoke(words, given)


def key_id(place: Place) -> str:
    made = json.loads(invoke(["pit", "keys", "list", "--json"], {}))
    live = [key["id"] for key in (made if isinstance(made, list) else made["data"]) if not key.get("revoked")]
    if live:
        return str(live[0])
    invoke(["pit", "keys", "create", "one"], {})
    return key_id(place)


def invoke(words: list[str], given: dict[str, str]) -> str:
    from app.cli import app as pit
    from training.cli import app as pit_train

    done = CliRunner().invoke(pit if words[0] == "pit" else pit_train, words[1:], env=given)
    assert done.exit_code == 0, f"{shlex.join(words)}: {done.output} {done.exception!r}"
    return done.stdout


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_parses(block: Block) -> None:
    json.loads(block.text.replace("…", "_"))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Of Kubernetes, of the server, or of training; a part of one stands in the demo's."""
    from app.settings import load_settings
    from training.config import load_config

    read: Any = yaml.safe_load(block.text)
    file = tmp_path / "config.yaml"
    if read.get("kind") == "Kustomization":
        overlay = ROOT / "deploy/overlays/mine"
        named = [*read["resources"], *read.get("components", [])]
        assert [one for one in named if not Path(os.path.normpath(overlay / one)).is_dir()] == []
    elif {"improver", "policy", "port", "database"} & set(read):
        file.write_text(block.text)
        load_settings(file)
    else:
        demo = {} if "name" in read else yaml.safe_load((ROOT / "training/configs/demo.yaml").read_text())
        file.write_text(yaml.safe_dump(demo | read))
        load_config(file)


def test_a_command_without_a_rule_is_a_failure() -> None:
    with pytest.raises(LookupError, match="no rule"):
        rule(["rm", "-rf", "x"])
    check = rule(["pit", "serve"]).check
    assert check
    with pytest.raises(typer.Exit):
        check(["pit", "serve", "--nothing"])
    with pytest.raises(ConfigError):
        rule(["pit-train", "run"]).check(["pit-train", "run", "training/configs/demo.yaml", "nothing=1"])  # type: ignore[misc]
    assert [each.reason for each in RUN if each.check] == []
