"""Reads the Dockerfile: its stages, and the instructions of each as they stand there."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """`word` is RUN, COPY, ENV and the like; `rest` what follows, on one line."""

    word: str
    rest: str

    def words(self) -> list[str]:
        """As a list: the JSON form as it is, the other one split as a shell does."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return shlex.split(self.rest)


@dataclass
class Stage:
    """`parent` is an image or the name of a stage before."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word == word]


def stages(text: str) -> dict[str, Stage]:
    """The stages by their names, in order. Raises `ValueError` for a stage without a name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", rest.strip())
            if not match:
                raise ValueError(f"a stage has no name: {line}")
            current = found[match[2]] = Stage(match[2], match[1])
        elif current:
            current.instructions.append(Instruction(word, rest.strip()))
    return found


def lineage(found: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those that it grows from, the first one first."""
    stage = found[name]
    before = lineage(found, stage.parent) if stage.parent in found else []
    return [*before, stage]


def needed(found: dict[str, Stage], name: str) -> list[Stage]:
    """All stages that a target needs, in the file's order: its lineage, and those that it copies from."""
    wanted: set[str] = set()
    waiting = [name]
    while waiting:
        for stage in lineage(found, waiting.pop()):
            wanted.add(stage.name)
            sources = re.findall(r"--from=(\S+)", " ".join(one.rest for one in stage.all("COPY")))
            waiting += [source for source in sources if source not in wanted]
    return [stage for stage in found.values() if stage.name in wanted]


def environment(found: dict[str, Stage], name: str) -> dict[str, str]:
    """The variables of the image."""
    given: dict[str, str] = {}
    for stage in lineage(found, name):
        for instruction in stage.all("ENV"):
            for word in instruction.words():
                key, _, value = word.partition("=")
                given[key] = re.sub(
                    r"\$(\w+)", lambda m: given.get(m[1], BASE_PATH if m[1] == "PATH" else ""), value
                )
    return given


def last(found: dict[str, Stage], name: str, word: str) -> Instruction | None:
    """The instruction that holds of those that may stand more than once: the last."""
    all_of_them = [one for stage in lineage(found, name) for one in stage.all(word)]
    return all_of_them[-1] if all_of_them else None


BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
