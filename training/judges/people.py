"""People as judges: what they are shown, and what they said.

In the pipeline `pit-train judge serve` shows the contests of collected answers (people_server.py), and an
evaluation reads the verdicts back (`PeopleJudge`). The paper's human evaluation is blind too.

A directory holds `tasks.json`, written once, and `verdicts.jsonl`, a line for each thing that somebody did,
on the disk before it is acknowledged. Two texts are judged once, in however many comparisons they stand; the
same text twice is a tie that nobody needs to look at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from training.checkpoint import sync_directory
from training.data import Message
from training.errors import ConfigError, DataError
from training.judges.protocol import Contest, Cost, Verdict

TASKS, VERDICTS = "tasks.json", "verdicts.jsonl"
NOT_JUDGED, SKIPPED, SAME = "not judged", "skipped", "the same text"


@dataclass(frozen=True)
class Task:
    """Two texts to compare, sorted: nothing in a task says which system wrote which."""

    key: str
    prompt: list[Message]
    texts: tuple[str, str]


@dataclass(frozen=True)
class Place:
    """Where a task stands in a comparison: `sign` −1 where the first system wrote the task's second text, 0
    where both wrote the same."""

    comparison: str
    example: str
    key: str
    sign: int


@dataclass(frozen=True)
class Tasks:
    """What people are shown, in the order of the list, and where each task stands. `seed` shuffles."""

    tasks: list[Task]
    places: list[Place]
    seed: int


def task_key(prompt: Sequence[Message], first: str, second: str) -> str:
    """The same for both orders of two texts."""
    content = json.dumps([list(prompt), *sorted((first, second))], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


# ---------------------------------------------------------------------------------------------------- tasks


def read_answers(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Examples by id, with the responses of all files together.

    Raises:
        DataError: a file cannot be read, a line is no example, or two files say different things of one.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "cannot be read", path=path, advice="Give texts.jsonl of an evaluation"
            ) from error
        for number, line in enumerate(lines, 1):
            record = _record(path, number, line)
            known = found.setdefault(record["id"], {**record, "responses": {}})
            differing = [s for s, t in record["responses"].items() if known["responses"].get(s, t) != t]
            if known["prompt"] != record["prompt"] or differing:
                what = f"another response of {differing[0]!r}" if differing else "another prompt"
                raise DataError(f"example {record['id']!r} stood before with {what}", path=path, line=number)
            known["responses"] |= record["responses"]
    return found


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
        prompt = given["prompt"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        messages = [Message(role=m["role"], content=str(m["content"])) for m in prompt]
        responses = {str(system): str(text) for system, text in given["responses"].items()}
        return {"id": str(given["id"]), "prompt": messages, "responses": responses}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            'no example: {"id", "prompt", "responses": {system: text}} is needed', path=path, line=number
        ) from error


def make_tasks(
    answers: Mapping[str, Mapping[str, Any]], compare: Sequence[str], examples: int | None, seed: int
) -> Tasks:
    """The tasks of the named comparisons ("PIT vs Original"), of the first `examples` that have both systems.

    Without a name the two systems of the files are compared, where there are just two.

    Raises:
        ConfigError: a comparison names a system that no file has, or there are more than two and no name.
    """
    systems = sorted({system for answer in answers.values() for system in answer["responses"]})
    if not compare:
        if len(systems) != 2:
            raise ConfigError(
                f"the files hold the systems {', '.join(systems)}; say which to compare: "
                '--compare "PIT vs Original"'
            )
        compare = [f"{systems[0]} vs {systems[1]}"]
    tasks: dict[str, Task] = {}
    places: list[Place] = []
    for name in compare:
        first, _, second = name.partition(" vs ")
        if first not in systems or second not in systems:
            raise ConfigError(f"--compare {name!r}: the files hold the systems {', '.join(systems)}")
        both = [a for a in answers.values() if first in a["responses"] and second in a["responses"]]
        for answer in both[:examples]:
            a, b = answer["responses"][first], answer["responses"][second]
            key = task_key(answer["prompt"], a, b)
            places.append(Place(name, answer["id"], key, (a < b) - (a > b)))
            if a != b:
                tasks.setdefault(key, Task(key, answer["prompt"], (min(a, b), max(a, b))))
    shuffled = list(tasks.values())
    random.Random(seed).shuffle(shuffled)
    return Tasks(shuffled, places, seed)


def keep_tasks(directory: Path, tasks: Tasks) -> None:
    """Write the tasks, or see that they are those of the directory.

    Raises:
        ConfigError: the directory has others.
    """
    path = directory / TASKS
    directory.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if read_tasks(directory) != tasks:
            raise ConfigError(f"{directory} has verdicts on other contests; give another --output")
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(tasks), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(directory)


def read_tasks(directory: Path) -> Tasks:
    """Raises `DataError` where `judge serve` has not written any."""
    path = directory / TASKS
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tasks = [Task(t["key"], t["prompt"], (t["texts"][0], t["texts"][1])) for t in record["tasks"]]
        return Tasks(tasks, [Place(**place) for place in record["places"]], record["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = "They are written by pit-train judge serve ANSWERS --output DIR"
        raise DataError("no contests that people judged", path=path, advice=advice) from error


# --------------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class Said:
    """What somebody said of a task: +1 the first text is better, −1 the second, 0 a tie, None skipped."""

    annotator: str
    key: str
    value: int | None


class VerdictFile:
    """Append-only JSON lines of what people said.

    Each line is on the disk before `add` or `undo` returns, and not there when they raise `OSError`.

    Use as a context manager; one process at a time. A line that a kill cut short is removed.
    """

    def __init__(self, directory: Path) -> None:
        """Read what is there.

        Raises:
            ConfigError: another process has it open.
        """
        self.path = directory / VERDICTS
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(f"{self.path} is in use by another pit-train judge serve") from error
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
        sync_directory(directory)
        self.said: dict[str, list[Said]] = _replayed(content)

    def add(self, said: Said, left: int) -> None:
        """`left`: which of the task's texts (0 or 1) was shown on the left."""
        self._write({**asdict(said), "left": left})
        self.said.setdefault(said.annotator, []).append(said)

    def undo(self, annotator: str) -> Said | None:
        """Take the last one back; None where there is none."""
        if not self.said.get(annotator):
            return None
        last = self.said[annotator][-1]
        self._write({"annotator": annotator, "key": last.key, "undo": True})
        return self.said[annotator].pop()

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps({**record, "at": round(time.time(), 3)}, ensure_ascii=False)
        data, before = line.encode() + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)  # half a line would spoil the next one
            raise

    def __enter__(self) -> VerdictFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_verdicts(directory: Path) -> dict[str, list[Said]]:
    """What each annotator said, in order, without what was taken back; while a server writes, too."""
    path = directory / VERDICTS
    return _replayed(path.read_bytes() if path.exists() else b"")


def _replayed(content: bytes) -> dict[str, list[Said]]:
    said: dict[str, list[Said]] = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        record = json.loads(line)
        of = said.setdefault(record["annotator"], [])
        if record.get("undo"):
            of.pop()
        else:
            of.append(Said(record["annotator"], record["key"], record["value"]))
    return said


def by_task(said: Mapping[str, Sequence[Said]]) -> dict[str, dict[str, int | None]]:
    """Task → annotator → what he or she said."""
    found: dict[str, dict[str, int | None]] = {}
    for annotator, each in said.items():
        for one in each:
            found.setdefault(one.key, {})[annotator] = one.value
    return found


def majority(values: Mapping[str, int | None]) -> Verdict:
    """What most annotators said of one task: the sign of the sum of their verdicts."""
    given = [value for value in values.values() if value is not None]
    if not given:
        return Verdict(None, SKIPPED if values else NOT_JUDGED)
    return Verdict((sum(given) > 0) - (sum(given) < 0))


class PeopleJudge:
    """See `Judge`: it looks up what people said in a directory of `pit-train judge serve`, by majority."""

    name = "people"

    def __init__(self, directory: Path) -> None:
        said = read_verdicts(directory)
        self._said = by_task(said)
        self.settings: dict[str, Any] = {"annotators": sorted(said), "verdicts": sum(map(len, said.values()))}
        self._cost = Cost()

    def judge(self, contests: Sequence[Contest]) -> list[Verdict]:
        self._cost += Cost(contests=len(contests))
        return [self._verdict(contest) for contest in contests]

    def _verdict(self, contest: Contest) -> Verdict:
        if contest.first == contest.second:
            return Verdict(0, SAME)
        key = task_key(contest.example.prompt, contest.first, contest.second)
        found = majority(self._said.get(key, {}))
        if found.value is None or contest.first < contest.second:
            return found
        return Verdict(-found.value)

    def estimate(self, contests: Sequence[Contest]) -> Cost:
        return Cost(contests=len(contests), known=len(contests))

    def cost(self) -> Cost:
        return self._cost
