"""The output file of `pit batch`: lines that are added as they come, and what an earlier run has left."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from app.commands import counted


class OutputError(Exception):
    """An output file that cannot be used. The message says why, and what to do."""


def summary(answered: int, failed: int, output: Path) -> str:
    """The last line of the command, in rich's markup."""
    style = "bold red" if failed else "bold green"
    return f"[{style}]{counted(answered, 'line')} answered, {counted(failed, 'error')}[/] in {output}"


def succeeded(line: str | bytes) -> tuple[str, bool]:
    """The custom_id of a line of results, and whether its request was answered. Raises `ValueError`."""
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(custom_id := found.get("custom_id"), str):
        raise ValueError("no line of results")
    return custom_id, (found.get("response") or {}).get("status_code") == 200


class Output:
    """A context. `done` are the custom_ids of the lines in the file, `failed` how many of these lines hold an
    error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.failed = 0

    def __enter__(self) -> "Output":
        """Raises `OutputError`: the file cannot be written, holds something else, or is being written."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._mend()
        except BlockingIOError:
            os.close(self._file)
            raise OutputError(f"another pit batch writes {self.path}: wait for its end") from None
        except OutputError:
            os.close(self._file)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def write(self, line: str) -> None:
        """Add a line: whole, or not at all for whoever reads the file."""
        custom_id, good = succeeded(line)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        self.done.add(custom_id)
        self.failed += not good

    def _mend(self) -> None:
        """Note what is there; cut off the last line where a kill has left a part of one."""
        end = 0
        for number, line in enumerate(_lines(self.path), 1):
            if not line.endswith(b"\n"):
                os.ftruncate(self._file, end)
                return
            try:
                custom_id, good = succeeded(line)
            except ValueError:
                raise OutputError(
                    f"{self.path} holds something else (line {number}): name another output file"
                ) from None
            end += len(line)
            self.done.add(custom_id)
            self.failed += not good


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file
