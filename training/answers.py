"""The file of answers that an evaluation collects, and what an improvement run's record says after each
iteration.

In the pipeline this stands between asking and judging: answers are appended as they come, so that a run
that was killed goes on where it stopped, and judging can be repeated without asking again.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from training.errors import ConfigError

Record = dict[str, Any]


class AnswerFile:
    """Append-only JSON lines: a header with the settings, then one record for each (system, example).

    Use as a context manager. A line that a kill cut short is removed; everything before it is kept.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        """Read what is there.

        Raises:
            ConfigError: the file was made with other settings; the message names them.
        """
        self.path = path
        self.known: dict[str, dict[str, Record]] = {}
        self._settings: Record = json.loads(json.dumps(settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write({"settings": self._settings})

    def _read(self) -> int:
        """Take in the whole lines; return how many bytes they are."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines()):
            record = json.loads(line)
            if number == 0:
                self._check(record.get("settings", {}))
            else:
                self.known.setdefault(record.pop("id"), {})[record.pop("system")] = record
        return whole

    def _check(self, other: Record) -> None:
        # Not what was asked: answers that were kept with the name of a judge can be judged by any.
        names = sorted({*other, *self._settings} - {"judge"})
        differing = [name for name in names if other.get(name) != self._settings.get(name)]
        if differing:
            changes = "; ".join(f"{n}: {other.get(n)} then, {self._settings.get(n)} now" for n in differing)
            raise ConfigError(
                f"{self.path} holds answers to other settings ({changes}). Give --output DIR to keep them, "
                "or --again to set them aside and ask anew"
            )

    def of(self, example: str) -> dict[str, Record]:
        """The records of one example by system; a live view."""
        return self.known.setdefault(example, {})

    def add(self, example: str, system: str, record: Record) -> None:
        """Keep a record, in the file at once."""
        self.of(example)[system] = record
        self._write({"system": system, "id": example, **record})

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def set_aside(path: Path) -> None:
    """Rename a file of answers to the first free `NAME.N.jsonl`, so that a new one can begin."""
    number = 1
    while path.exists():
        target = path.with_suffix(f".{number}.jsonl")
        if not target.exists():
            path.rename(target)
        number += 1


def responses(record: Record, iterations: int) -> list[str]:
    """The best response after 0, 1, …, `iterations` iterations: shape (iterations + 1,). Entry 0 is the
    reference.

    A candidate that was not accepted changes nothing, and neither does an iteration that never began.
    """
    found = [str(record["reference"])]
    for iteration in record["iterations"][:iterations]:
        found.append(iteration["text"] if iteration["accepted"] else found[-1])
    return found + [found[-1]] * (iterations + 1 - len(found))


def until_first_rejection(record: Record) -> Record:
    """The same run as it would have been with patience 1: nothing after the first rejection."""
    kept: list[Record] = []
    for iteration in record["iterations"]:
        kept.append(iteration)
        if not iteration["accepted"]:
            break
    return {**record, "iterations": kept}


def tokens_after(record: Record, iterations: int) -> dict[str, int]:
    """Tokens read (`prompt`), of those cached, and written (`completion`) by the first iterations.

    What the gap reward reads is not among them; studies show it in a column of its own.
    """
    total = {"prompt": 0, "completion": 0, "cached": 0}
    for iteration in record["iterations"][:iterations]:
        for name in total:
            total[name] += iteration["tokens"][name]
    return total
