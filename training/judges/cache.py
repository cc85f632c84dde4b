"""Answers that were paid for are kept: a file that outlives a kill, and that several processes may share."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from training.errors import ConfigError, TrainingError


class AnswerCache:
    """Texts by the hash of what was asked, with the tokens they cost. Use as a context manager.

    Each answer is committed when it is added: a process that is killed loses none.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            ConfigError: it is no such file.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, "
                "text TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, "
                "at REAL NOT NULL)"
            )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ConfigError(f"{path}: not a file of kept answers; name another one") from error

    def get(self, key: str) -> str | None:
        """The text that was kept."""
        row = self._execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def add(self, key: str, model: str, text: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Keep an answer, in the file when this returns."""
        self._execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
            (key, model, text, prompt_tokens, completion_tokens, time.time()),
        )

    def _execute(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        """Raises `TrainingError` where the disk is full, the file locked for a minute, or damaged."""
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise TrainingError(
                f"{self.path}: kept answers cannot be read or written; see that the disk has room and that "
                "the file is whole"
            ) from error

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()


def key_of(body: dict[str, Any]) -> str:
    """The hash of a request's body: its model, its text, its sampling."""
    content = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
