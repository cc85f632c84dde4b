"""Reads the rows of a file one by one: JSON lines, a JSON array, Parquet, a directory of `datasets`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from training.errors import DataError

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Where:
    """The line (or row) that is being read, for error messages."""

    path: Path
    line: int

    def error(self, problem: str, advice: str = "Mend or remove the line") -> DataError:
        return DataError(problem, path=self.path, line=self.line, advice=advice)


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and content of every row; blank lines of JSON lines are passed over.

    Raises `DataError` (path, line, what to do) for what cannot be read.
    """
    try:
        if path.is_dir():
            yield from _dataset(path)
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif _is_array(path):
            yield from _array(path)
        else:
            yield from _json_lines(path)
    except FileNotFoundError:
        raise DataError(
            "no such file", path=path, advice="Set the data path to a file of preference pairs"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Bytes, because only "\n" ends a line of JSON lines; text mode would also accept "\r".
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = Where(path, number)
            try:
                text = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise where.error(
                    f"not UTF-8 (byte {error.start + 1} of the line)", "Convert the file to UTF-8"
                ) from None
            if text.strip():
                yield number, _row(_decoded(text, where), where, "Each line must be one JSON object")


def _decoded(text: str, where: Where) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
        raise where.error(problem, "Each line must be one JSON object") from None
    except (RecursionError, ValueError) as error:
        raise where.error(f"JSON that cannot be read: {error}") from None


def _row(value: Any, where: Where, advice: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise where.error(f"a JSON {type(value).__name__}, not an object", advice)
    return value


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _is_array(path: Path) -> bool:
    """A `.json` file that begins with a bracket; JSON lines go by that name too."""
    if path.name.removesuffix(".gz").endswith(".json"):
        with _opened(path) as file:
            try:
                return file.read(_CHUNK).lstrip().startswith("[")
            except UnicodeDecodeError:
                return False
    return False


def _array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The elements of a JSON array, of which no more than one and a chunk is in memory."""
    decoder, number = json.JSONDecoder(), 0
    with _opened(path) as file:
        text, ended = file.read(_CHUNK).lstrip()[1:], False
        while True:
            where = Where(path, number + 1)
            text = text.lstrip()
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text)
            except RecursionError as error:
                raise where.error(f"JSON that cannot be read: {error}") from None
            except ValueError as error:
                if ended:
                    problem = "the array has no end" if not text else f"not JSON: {error}"
                    raise where.error(problem, "The file must be one array of JSON objects") from None
                end = 0
            rest = text[end:].lstrip()
            if end and rest.startswith((",", "]")):
                number += 1
                yield number, _row(value, where, "The file must be one array of JSON objects")
                text = rest.removeprefix(",")
                continue
            if ended:
                raise where.error("not JSON: no comma after it", "The file must be one array of JSON objects")
            try:
                more = file.read(max(_CHUNK, len(text)))
            except UnicodeDecodeError:
                raise where.error("not UTF-8", "Convert the file to UTF-8") from None
            text, ended = text + more, not more


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowInvalid as error:
        raise DataError(f"not Parquet: {error}", path=path) from None


def _dataset(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except FileNotFoundError:
        raise DataError(
            "a directory that `datasets` did not save", path=path, advice="Name one of the files in it"
        ) from None
    if isinstance(found, DatasetDict):
        names = ", ".join(found)
        raise DataError(
            f"holds several splits: {names}", path=path, advice=f"Name one: {path}/{next(iter(found))}"
        )
    yield from enumerate(found, start=1)
