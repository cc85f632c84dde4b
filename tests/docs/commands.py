"""What is done with each command that the documentation shows.

`RULES` is the whole list: a command that no rule fits fails the test, so nothing is skipped in silence.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from tests.docs.pages import ROOT

Words = list[str]


@dataclass(frozen=True)
class Rule:
    """How commands that begin like `words` are treated: `run` against the server of fakes, or `checked` by a
    function, for a `reason` that says why it is not run."""

    words: str
    reason: str
    check: Callable[[Words], None] | None = None

    def fits(self, words: Words) -> bool:
        begin = self.words.split()
        return words[: len(begin)] == begin


def lines(text: str) -> list[str]:
    """The commands of a block: lines, with those that continue one."""
    found: list[str] = []
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # within a quotation
            pending += "\n"
            continue
        if words:
            found.append(pending)
        pending = ""
    if pending.strip():
        raise ValueError(f"this command does not end: {pending}")
    return found


def words_of(command: str) -> tuple[dict[str, str], Words]:
    """Its assignments, and its words without comment and redirections."""
    words = shlex.split(command, comments=True)
    given: dict[str, str] = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
        name, _, value = words.pop(0).partition("=")
        given[name] = value
    return given, words


def typer_accepts(app: typer.Typer, words: Words) -> None:
    """Parse as the program would: every option and argument is there. Nothing is executed."""
    from app.cli import vllm_options

    command: Any = typer.main.get_command(app)
    context = command.make_context(words[0], [], resilient_parsing=True)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(command.name, list(rest), parent=context)
    if context.args:
        vllm_options(context.args)


def pit(words: Words) -> None:
    from app.cli import app

    typer_accepts(app, words)


def pit_train(words: Words) -> None:
    """Options, and the configuration with its overrides."""
    from training.cli import app
    from training.config import load_config

    typer_accepts(app, words)
    given = [word for word in words if word.endswith(".yaml")]
    if given and (ROOT / given[0]).exists():
        sets = [word for word in words if re.fullmatch(r"[\w.]+=.*", word, re.DOTALL)]
        load_config(ROOT / given[0], sets)


def study(words: Words) -> None:
    """Options, and each study with what is set."""
    from training.studies.config import load_study

    pit_train(["pit-train", *[word for word in words[1:] if not word.endswith(".yaml")], "x.yaml"])
    files = [file for word in words if word.endswith(".yaml") for file in sorted(ROOT.glob(word))]
    assert files, words
    for file in files:
        load_study(file, [words[n + 1] for n, word in enumerate(words) if word == "--set"])


def kubectl(words: Words) -> None:
    """What is applied is there, but for the reader's own overlay."""
    paths = [words[n + 1] for n, word in enumerate(words) if word in ("-k", "-f")]
    assert [p for p in paths if p not in ("-", "deploy/overlays/mine") and not (ROOT / p).exists()] == []


def files(words: Words) -> None:
    """Those before a pipe are there."""
    named = words[1 : words.index("|")] if "|" in words else words[1:]
    assert [one for one in named if not (ROOT / one).exists()] == []


def make(words: Words) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words[1:] if "=" not in word} <= targets, words


def pip(words: Words) -> None:
    """Extras of ours exist."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if found := re.fullmatch(r"(?:pit-serve|\.)\[([\w,]+)\]", word):
            assert set(found[1].split(",")) <= set(project["optional-dependencies"]), word


def launcher(words: Words) -> None:
    """The configuration of accelerate is there, and what is launched is a command of ours."""
    if "--config_file" in words:
        yaml.safe_load((ROOT / words[words.index("--config_file") + 1]).read_text(encoding="utf-8"))
    assert words[words.index("-m") + 1] == "training.cli"
    pit_train(["pit-train", *words[words.index("-m") + 2 :]])


def module(words: Words) -> None:
    """A module or a file of the project that is there."""
    if words[1] == "-m":
        assert (ROOT / words[2].replace(".", "/")).exists(), words[2]
    else:
        assert (ROOT / words[1]).exists(), words[1]


def nothing(_: Words) -> None:
    """Shell syntax alone, which is checked of every block."""


RUN = (
    Rule("curl", "run"),
    Rule("pit improve", "run"),
    Rule("pit runs", "run"),
    Rule("pit replay", "run"),
    Rule("pit feedback", "run"),
    Rule("pit keys", "run"),
    Rule("pit batch", "run"),
    Rule("pit bench", "run"),
    Rule("pit db upgrade", "run"),
    Rule("pit version", "run"),
    Rule("pit-train data", "run"),
    Rule("python examples", "run"),
    Rule("examples/curl.sh", "run"),
)
CHECKED = (
    Rule("pit batch --ray", "needs a Ray cluster", pit),
    Rule("pit serve", "starts engines", pit),
    Rule("pit doctor", "looks at engines and checkpoints that are not there", pit),
    Rule("pit-train run", "trains", pit_train),
    Rule("pit-train evaluate", "needs trained checkpoints", pit_train),
    Rule("pit-train accuracy", "needs trained checkpoints", pit_train),
    Rule("pit-train study", "trains, and needs trained checkpoints", study),
    Rule("pit-train", "trains, or needs what was trained", pit_train),
    Rule("make", "installs, trains or measures", make),
    Rule("pip install", "installs", pip),
    Rule("accelerate launch", "needs several processes or GPUs", launcher),
    Rule("torchrun", "needs several processes or GPUs", launcher),
    Rule("python -m vllm.entrypoints.openai.api_server", "starts vLLM's own server", nothing),
    Rule("python", "measures, trains or starts a server", module),
    Rule("pg_dump", "needs a PostgreSQL with data", nothing),
    Rule("sqlite3", "a program that may not be there", nothing),
    Rule("openssl", "a program that may not be there", nothing),
    Rule("export", "sets a variable of the reader's shell", nothing),
    Rule("cd", "changes the reader's directory", nothing),
    Rule("git clone", "needs a network", nothing),
    Rule("apt-get", "installs", nothing),
    Rule("chmod", "changes the reader's files", nothing),
    Rule("printf", "writes a file of the reader's", nothing),
    Rule("{", "the beginning of a pipeline into kubectl: needs a cluster", nothing),
    Rule("cat", "a part of that pipeline", files),
    Rule("}", "its end", nothing),
    Rule("docker", "needs a container engine", nothing),
    Rule("kubectl", "needs a cluster", kubectl),
    Rule("optillm", "another project's program", nothing),
    Rule("litellm", "another project's program", nothing),
    Rule("vllm", "another project's program", nothing),
)


def rule(words: Words) -> Rule:
    """The most exact rule. Raises `LookupError` for a command that none fits."""
    fitting = [each for each in (*RUN, *CHECKED) if each.fits(words)]
    if not fitting:
        raise LookupError(f"no rule for {shlex.join(words)}: add one to tests/docs/commands.py")
    return max(fitting, key=lambda each: len(each.words))


@dataclass
class Place:
    """Where commands run: a server, a stored run for RUN and imp_…, a directory with the files they name."""

    url: str
    run: str
    directory: Path
    database: str
    names: dict[str, str] = field(default_factory=dict)

    def filled(self, text: str) -> str:
        """The text with this server's address and this run."""
        text = re.sub(r"http://(127\.0\.0\.1|localhost):8000", self.url, text)
        text = re.sub(r"\bimp_…|(?<=[ =/])RUN\b", self.run, text)
        for name, value in self.names.items():
            text = text.replace(name, value)
        return text
