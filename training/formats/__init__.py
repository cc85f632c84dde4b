"""The file formats of preference pairs: from a file to checked records, or a `DataError` that names the line.

- `chat_pairs`: `prompt`, `chosen` and `rejected` as lists of messages; optional `id`, `source` and
  `references` (other responses that people wrote for the same draft).
- `hh_rlhf`: the original text of Anthropic's HH-RLHF: `chosen` and `rejected` are whole conversations.
- `preference`: the preference types of TRL: plain text or messages, the prompt given or left implicit.
- `summaries`: comparisons of OpenAI's summarize-from-feedback (TL;DR and CNN/DM).
- `fg_rlhf`: the QA feedback of Fine-Grained RLHF: four answers to a question, compared two by two.
- `defacto`: summaries that people corrected, with the article (DeFacto).

A file is JSON lines, a JSON array, Parquet, or a directory of `datasets.save_to_disk`; the first two may be
gzipped. Rows are read one by one. Whether a record is of use as a preference is decided in data.py; here only
whether it is of the format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from training.errors import ConfigError, DataError
from training.formats.pairs import chat_record, hh_record, preference_record
from training.formats.published import defacto_record, fg_rlhf_records, summaries_record
from training.formats.reading import Where, objects
from training.formats.records import Message as Message
from training.formats.records import Record as Record

Format = Literal["chat_pairs", "hh_rlhf", "preference", "summaries", "fg_rlhf", "defacto"]

_PARSERS: dict[str, Callable[[Mapping[str, Any], Where], Iterable[Record]]] = {
    "chat_pairs": lambda record, where: [chat_record(record, where)],
    "hh_rlhf": lambda record, where: [hh_record(record, where)],
    "preference": lambda record, where: [preference_record(record, where)],
    "summaries": lambda record, where: [summaries_record(record, where)],
    "fg_rlhf": fg_rlhf_records,
    "defacto": lambda record, where: [defacto_record(record, where)],
}
# The keys that tell a format; the first whose keys are all there.
_KEYS: tuple[tuple[frozenset[str], Format], ...] = (
    (frozenset({"info", "summaries", "choice"}), "summaries"),
    (frozenset({"question", "prediction 1", "preference"}), "fg_rlhf"),
    (frozenset({"article", "candidate", "feedback"}), "defacto"),
)


def read_records(format: Format, path: Path) -> Iterator[tuple[int, Record]]:
    """Line number (in other files than JSON lines the row; from 1) and record of every row of a file.

    Raises `ConfigError` for an unknown format, `DataError` for a file or a row that cannot be read.
    """
    if format not in get_args(Format):
        raise ConfigError(f"data format {format!r} is unknown; choose one of {', '.join(get_args(Format))}")
    for number, row in objects(path):
        for record in _PARSERS[format](row, Where(path, number)):
            yield number, record


def recognise(path: Path) -> Format:
    """The format of a file, by the keys of its first row.

    Raises `DataError` when it is none of them; the message lists them.
    """
    row = next((row for _, row in objects(path)), None)
    if row is None:
        raise DataError("the file holds no row", path=path)
    for keys, format in _KEYS:
        if keys <= row.keys():
            return format
    if {"chosen", "rejected"} <= row.keys():
        if isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:"):
            return "hh_rlhf"
        if isinstance(row.get("prompt"), list) and isinstance(row["chosen"], list):
            return "chat_pairs"
        return "preference"
    raise DataError(
        f"the first row has the keys {', '.join(sorted(map(str, row)))}, which no format begins with",
        path=path,
        advice=f"Formats are {', '.join(get_args(Format))}; training/formats says what each looks like",
    )
