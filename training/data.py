"""Preference pairs: reading them, saying what was left out, and splitting them between the stages.

In the pipeline this stands first: every later stage reads `PreferencePair`s. The file formats are in
formats/.

Beyond the paper, which says only that the data is split in three: what cannot be a preference (an empty or
identical response, a repeated pair, two different prompts) is left out and reported line by line; a line that
breaks the format stops the reading with a `DataError`. Plain Python: no trainer library, no torch.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from training.errors import ConfigError, DataError
from training.formats import Format, Record, read_records
from training.formats import Message as Message

SplitKey = Literal["prompt", "prompt+rejected", "opening"]
# What to do where all pairs have one key.
_FINER_KEY = {
    "prompt": "Set split_key to prompt+rejected, the prompt is constant",
    "opening": "Set split_key to prompt, all conversations have the same opening",
}


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
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 or absent, not {limit}")
    path = Path(path)
    sorter = _Sorter(path)
    for number, record in read_records(format, path):
        sorter.add(number, record)
        if len(sorter.pairs) == limit:
            break
    report = sorter.report(format)
    if not report.kept:
        detail = report.text() if report.read else f"{path}: the file holds no line"
        raise DataError(f"no usable preference pair. {detail}")
    return LoadResult(sorter.pairs, report)


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as `chat_pairs`, atomically; `load_pairs` reads the same pairs back."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            file.write(json.dumps(_as_record(pair), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def split_by_prompt(
    pairs: Sequence[PreferencePair],
    fractions: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
    seed: int = 0,
    split_key: SplitKey = "prompt",
) -> tuple[list[PreferencePair], ...]:
    """Divide pairs between the stages so that no prompt stands in two parts; each part keeps their order.

    A prompt's part follows from a hash of seed and prompt alone: it depends neither on the order of the
    pairs nor on what other pairs there are, so a data set that grows moves none of them. The sizes are
    therefore near the fractions, not equal to them.

    `split_key="prompt"` is the rule. Data whose prompt is one constant sentence (edits of a given draft:
    ParaDetox, Disfl-QA) would fall into a single part; there the draft is the question in truth, and
    `"prompt+rejected"` keeps all rewrites of one draft together. Where conversations branch from a common
    beginning (HH-RLHF), different prompts are about one matter; `"opening"` keeps those that begin with
    the same user message together.

    Raises `ConfigError` for impossible fractions, `DataError` when a part would be empty.
    """
    in_range = all(0 < fraction <= 1 for fraction in fractions)
    if not in_range or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ConfigError(f"split fractions must be above 0 and sum to 1, not {list(fractions)}")
    if split_key not in get_args(SplitKey):
        raise ConfigError(
            f"split_key {split_key!r} is unknown; choose one of {', '.join(get_args(SplitKey))}"
        )
    parts: tuple[list[PreferencePair], ...] = tuple([] for _ in fractions)
    keys = set()
    for pair in pairs:
        key = _split_key(pair, split_key)
        keys.add(key)
        parts[_part(key, fractions, seed)].append(pair)
    if not all(parts):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise DataError(
            f"{len(pairs)} pairs with {len(keys)} different keys fall into parts of {sizes}: one is empty",
            advice=_FINER_KEY.get(split_key, "Use more data") if len(keys) == 1 else "Use more data",
        )
    return parts


def without_keys_of(
    pairs: Sequence[PreferencePair], others: Sequence[PreferencePair], split_key: SplitKey = "prompt"
) -> list[PreferencePair]:
    """The pairs that `split_by_prompt` would never put into one part with any of `others`' because of a
    shared key."""
    keys = {_split_key(pair, split_key) for pair in others}
    return [pair for pair in pairs if _split_key(pair, split_key) not in keys]


def one_a_key(pairs: Sequence[PreferencePair], split_key: SplitKey = "prompt") -> list[PreferencePair]:
    """The first pair of each key: examples that do not depend on each other."""
    return list({_split_key(pair, split_key): pair for pair in reversed(pairs)}.values())[::-1]


def shared_prompts(pairs: Sequence[PreferencePair], others: Sequence[PreferencePair]) -> int:
    """How many prompts stand in both: what is trained on must not be judged on."""
    return len({json.dumps(p.prompt) for p in pairs} & {json.dumps(p.prompt) for p in others})


@dataclass
class _Sorter:
    """Takes parsed lines one by one and tells the usable pairs from the others."""

    path: Path
    pairs: list[PreferencePair] = field(default_factory=list)
    places: dict[str, list[Place]] = field(default_factory=lambda: {name: [] for name in _KINDS})
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    read: int = 0

    def add(self, line: int, record: Record) -> None:
        self.read += 1
        place = Place(line, record.id or f"{self.path.name.split('.')[0]}-{line}")
        prompt = json.dumps(record.prompts[0])
        key = (prompt, record.chosen, record.rejected)
        kind = self._exclusion(record, key)
        if kind is not None:
            self.places[kind].append(place)
            return
        if (prompt, record.rejected, record.chosen) in self.seen:
            self.places["ties"].append(place)
        self.seen.add(key)
        self.prompts.add(prompt)
        source = record.source or f"{self.path.parent.name}/{self.path.name}"
        responses = (record.chosen, record.rejected)
        self.pairs.append(PreferencePair(place.id, record.prompts[0], *responses, source, record.references))

    def _exclusion(self, record: Record, key: tuple[str, str, str]) -> str | None:
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
        return "duplicates" if key in self.seen else None

    def report(self, format: str) -> LoadReport:
        return LoadReport(
            path=str(self.path),
            format=format,
            sha256=_hash(self.path),
            words={
                "prompt": _words(" ".join(m["content"] for m in pair.prompt) for pair in self.pairs),
                "chosen": _words(pair.chosen for pair in self.pairs),
                "rejected": _words(pair.rejected for pair in self.pairs),
            },
            read=self.read,
            kept=len(self.pairs),
            prompts=len(self.prompts),
            **{name: tuple(places) for name, places in self.places.items()},
        )


def _hash(path: Path) -> str:
    """Of a file, or of the names and contents of a directory's files."""
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.is_file())
        content = "".join(f"{p.relative_to(path)} {_hash(p)}\n" for p in names)
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _words(texts: Iterable[str]) -> dict[str, int]:
    """Median, 95th percentile and maximum of the number of words."""
    counts = sorted(len(text.split()) for text in texts)
    if not counts:
        return {}
    last = len(counts) - 1
    return {"median": counts[last // 2], "p95": counts[round(0.95 * last)], "max": counts[-1]}


def opening(pair: PreferencePair) -> str:
    """The first user message of the conversation."""
    return next(message["content"] for message in pair.prompt if message["role"] == "user")


def _split_key(pair: PreferencePair, split_key: SplitKey) -> str:
    if split_key == "opening":
        return json.dumps(opening(pair))
    key: list[object] = [list(pair.prompt)]
    if split_key == "prompt+rejected":
        key.append(pair.rejected)
    return json.dumps(key, sort_keys=True)


def _part(key: str, fractions: Sequence[float], seed: int) -> int:
    """The part whose stretch of [0, 1) holds the key's hash."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    upper = 0.0
    for part, fraction in enumerate(fractions):
        upper += fraction
        if position < upper:
            return part
    return len(fractions) - 1


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
