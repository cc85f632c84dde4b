"""JSON Lines for Ray Data, line by line as text: its own reader gives a table, in which the bodies of all
lines become one type; its reader of texts holds whole files, and cuts lines at other characters too."""

from collections.abc import Iterator
from typing import Any

import pyarrow
from ray.data.datasource import BlockBasedFileDatasink, FileBasedDatasource

CHUNK = 1 << 20


class LinesDatasource(FileBasedDatasource):  # type: ignore[misc]
    """Rows of `line` and `number` (from 1 in each file), in blocks of `lines` lines."""

    def __init__(self, path: str, lines: int) -> None:
        super().__init__(path)
        self.lines = lines

    def _read_stream(self, f: Any, path: str) -> Iterator[Any]:
        rest, number = b"", 0
        rows: list[dict[str, Any]] = []
        while True:
            chunk = f.read(CHUNK)
            *whole, rest = (rest + chunk).split(b"\n")
            if not chunk and rest:
                whole, rest = [rest], b""
            for line in whole:
                number += 1
                if line.strip():
                    rows.append({"line": line.decode("utf-8", "replace"), "number": number})
                if len(rows) >= self.lines:
                    yield pyarrow.Table.from_pylist(rows)
                    rows = []
            if not chunk:
                break
        if rows:
            yield pyarrow.Table.from_pylist(rows)


class LinesDatasink(BlockBasedFileDatasink):  # type: ignore[misc]
    """The column `line` as lines of a file for each block."""

    def __init__(self, path: str) -> None:
        super().__init__(path, file_format="jsonl")

    def write_block_to_file(self, block: Any, file: Any) -> None:
        for line in block.to_arrow().column("line").to_pylist():
            file.write(line.encode() + b"\n")
