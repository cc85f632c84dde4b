"""Preference pairs: reading them, and saying what was left out.

In the pipeline this stands first: every later stage reads `PreferencePair`s. The file formats are in
formats/, the split between the stages is in split.py.

Beyond the paper, which says only that the data is split in three: what cannot be a preference (an empty or
identical response, a repeated pair, two different prompts) is left out and reported line by line; a line that
breaks the format stops the reading with a `DataError`. Plain Python: no trainer library, no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import ConfigError, DataError
from training.formats import Format, Record, read_records
from training.formats import Message as Message


@dataclass(frozen=True)
class PreferencePair:
    """x, y_w and y_l: a conversation that ends with the user, the preferred response and the other one.

    `references` are the responses that people wrote where a file lists them: an improvement is judged by how
    close it comes to one of them.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a pair stands in its file: line counted from 1."""

    line: int
    id: str


@dataclass(frozen=True)
class LoadReport:
    """What became of every line of a file: read = kept + everything that was left out.

    `ties` are kept: pairs whose two responses stand in the opposite order too, so that people disagreed.
    """

    path: str
    format: str
    sha256: str
    read: int
    kept: int
    prompts: int
    identical: tuple[Place, ...] = ()
    empty: tuple[Place, ...] = ()
    duplicates: tuple[Place, ...] = ()
    differing_prompts: tuple[Place, ...] = ()
    unasked: tuple[Place, ...] = ()
    undecided: tuple[Place, ...] = ()
    words: dict[str, dict[str, int]] = field(default_factory=dict)
    ties: tuple[Place, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values: a count, the lines and the ids of each kind."""
        record: dict[str, Any] = {
            name: getattr(self, name) for name in ("path", "format", "sha256", "read", "kept", "prompts")
        }
        record["words"] = self.words
        for name in _KINDS:
            places: tuple[Place, ...] = getattr(self, name)
            record[name] = {
                "count": len(places),
                "lines": [place.line for place in places],
                "ids": [place.id for place in places],
            }
        return record

    def text(self, shown: int = 8) -> str:
        """The report for a terminal; of each kind the first `shown` line numbers."""
        lines = [
            f"{self.path} ({self.format}): {self.read} pairs read, {self.kept} kept, {self.prompts} prompts"
        ]
        if self.words and self.kept:
            lengths = (f"{name} {w['median']}, {w['p95']}, {w['max']}" for name, w in self.words.items())
            lines.append(f"  words (median, 95%, most): {'; '.join(lengths)}")
        for name, meaning in _KINDS.items():
            places: tuple[Place, ...] = getattr(self, name)
            if places:
                numbers = ", ".join(str(place.line) for place in places[:shown])
                more = f" and {len(places) - shown} more" if len(places) > shown else ""
                lines.append(f"  {len(places)} {meaning}: line {numbers}{more}")
        return "\n".join(lines)


_KINDS = {
    "identical": "left out, both responses are the same",
    "empty": "left out, a response is empty",
    "duplicates": "left out, the same pair stood before",
    "differing_prompts": "left out, the two conversations have different prompts",
    "unasked": "left out, the last message of the prompt is not the user's",
    "undecided": "left out, people preferred neither",
    "ties": "kept, the same two responses are also preferred the other way round",
}


@dataclass(frozen=True)
class LoadResult:
    """The usable pairs of a file, in its order, and what became of the others."""

    pairs: list[PreferencePair]
    report: LoadReport


def load_pairs(format: Format, path: str | Path, limit: int | None = None) -> LoadResult:
    """Read a file of preference pairs; with `limit`, stop after so many usable ones.

    Raises `ConfigError` for an unknown format or a limit below 1, and `DataError` (path, line, what to do)
    for a file that cannot be read, a line that is not of the format, or a file without a usable pair.
    """
    stream = PairStream(format, path, limit)
    return LoadResult(list(stream), stream.report())


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as `chat_pairs`, atomically; `load_pairs` reads the same pairs back."""
    with pair_writer(path) as write:
        for pair in pairs:
            write(pair)


@contextmanager
def pair_writer(path: str | Path) -> Iterator[Callable[[PreferencePair], None]]:
    """Write pairs one by one, as `chat_pairs`; the file is there when all are written, or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:

        def write(pair: PreferencePair) -> None:
            file.write(json.dumps(_as_record(pair), ensure_ascii=False) + "\n")

        try:
            yield write
        except BaseException:
            temporary.unlink()
            raise
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class PairStream:
    """The usable pairs of a file, read one by one; `report` says afterwards what became of every line.

    It holds no text: of each kept pair three hashes of 16 bytes, of each left out its line and id.
    Errors are those of `load_pairs`, raised while reading.
    """

    def __init__(self, format: Format, path: str | Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1 or absent, not {limit}")
        self.format, self.path, self.limit = format, Path(path), limit
        self.read = self.kept = 0
        self.prompts: set[bytes] = set()
        self.drafts: set[bytes] = set()
        """Of prompt and y_l together."""
        self._places: dict[str, list[Place]] = {name: [] for name in _KINDS}
        self._seen: set[bytes] = set()
        self._words: dict[str, Counter[int]] = {name: Counter() for name in ("prompt", "chosen", "rejected")}

    def __iter__(self) -> Iterator[PreferencePair]:
        for number, record in read_records(self.format, self.path):
            pair = self._sort(number, record)
            if pair is not None:
                yield pair
                if self.kept == self.limit:
                    break
        if not self.kept:
            detail = self.report().text() if self.read else f"{self.path}: the file holds no line"
            raise DataError(f"no usable preference pair. {detail}")

    def report(self) -> LoadReport:
        """Of what has been read so far."""
        return LoadReport(
            path=str(self.path),
            format=self.format,
            sha256=_hash(self.path),
            words={name: _words(counts) for name, counts in self._words.items()},
            read=self.read,
            kept=self.kept,
            prompts=len(self.prompts),
            **{name: tuple(places) for name, places in self._places.items()},
        )

    def shared_with(self, other: PairStream) -> dict[str, int]:
        """How many prompts stand in both, and how many drafts: what is trained on must not be judged on."""
        return {
            "prompts": len(self.prompts & other.prompts),
            "drafts": len(self.drafts & other.drafts),
        }

    def _sort(self, line: int, record: Record) -> PreferencePair | None:
        """The record as a pair; None, and its place noted, when it is no preference."""
        self.read += 1
        place = Place(line, record.id or f"{self.path.name.split('.')[0]}-{line}")
        texts = (json.dumps(record.prompts[0]), record.chosen, record.rejected)
        prompt, chosen, rejected = (_digest(text.encode()) for text in texts)
        key = _digest(prompt + chosen + rejected)
        kind = self._exclusion(record, key)
        if kind is not None:
            self._places[kind].append(place)
            return None
        if _digest(prompt + rejected + chosen) in self._seen:
            self._places["ties"].append(place)
        self.kept += 1
        self._seen.add(key)
        self.prompts.add(prompt)
        self.drafts.add(_digest(prompt + rejected))
        self._words["prompt"][sum(len(m["content"].split()) for m in record.prompts[0])] += 1
        self._words["chosen"][len(record.chosen.split())] += 1
        self._words["rejected"][len(record.rejected.split())] += 1
        source = record.source or f"{self.path.parent.name}/{self.path.name}"
        responses = (record.chosen, record.rejected)
        return PreferencePair(place.id, record.prompts[0], *responses, source, record.references)

    def _exclusion(self, record: Record, key: bytes) -> str | None:
        if record.undecided:
            return "undecided"
        if len(set(map(json.dumps, record.prompts))) > 1:
            return "differing_prompts"
        if record.prompts[0][-1]["role"] != "user":
            return "unasked"
        if not record.chosen.strip() or not record.rejected.strip():
            return "empty"
        if record.chosen == record.rejected:
            return "identical"
        return "duplicates" if key in self._seen else None


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _hash(path: Path) -> str:
    """Of a file, or of the names and contents of a directory's files."""
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.is_file())
        content = "".join(f"{p.relative_to(path)} {_hash(p)}\n" for p in names)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _words(counts: Counter[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum of the number of words."""
    if not counts:
        return {}
    last = counts.total() - 1
    found: dict[str, int] = {}
    ranks = {"median": last // 2, "p95": round(0.95 * last), "max": last}
    upto = 0
    for length in sorted(counts):
        upto += counts[length]
        found |= {name: length for name, rank in ranks.items() if rank < upto and name not in found}
    return found


def _as_record(pair: PreferencePair) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": pair.id,
        "source": pair.source,
        "prompt": list(pair.prompt),
        "chosen": [Message(role="assistant", content=pair.chosen)],
        "rejected": [Message(role="assistant", content=pair.rejected)],
    }
    if pair.references:
        record["references"] = list(pair.references)
    return record
