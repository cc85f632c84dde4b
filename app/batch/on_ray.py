"""`pit batch --ray`: the same on Ray Data, for files that are too many or too large for one machine.

Blocks of lines go to actors, which send them; what a block gives is one file of the output folder. A second
call leaves out what is there.
"""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
from ray.exceptions import RayError
from rich.console import Console

from app.batch.output import OutputError, succeeded, summary
from app.batch.ray_data import LinesDatasink, LinesDatasource
from app.batch.send import Request, Sender, Target, Unreachable, read_line
from app.commands import counted

LINES = 256
"""Lines of a block at most: what is lost with a kill."""


def send_on_ray(input: Path, output: Path, target: Target, actors: int, console: Console) -> int:
    """Send what is not in the output folder yet; how many lines of the output hold an error.

    On the cluster of RAY_ADDRESS, or on one that is started here and ended again. Raises `OutputError` and
    `Unreachable`.
    """
    folder = output.resolve()
    before = dict(finished(folder))
    if before:
        console.print(f"{counted(len(before), 'line')} done already", highlight=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # on a terminal it has bars
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        if _is_parquet(input):
            lines = ray.data.read_parquet(str(input.resolve()))
        else:
            lines = ray.data.read_datasource(LinesDatasource(str(input.resolve()), LINES))
        results = lines.map_batches(
            Send,
            fn_constructor_args=(target, frozenset(before)),
            batch_size=LINES,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
        results.write_datasink(LinesDatasink(str(folder)))
    except RayError as error:
        if "Unreachable" in str(error):
            raise Unreachable(f"no server answers at {', '.join(target.urls)}") from None
        raise
    finally:
        ray.shutdown()
    after = dict(finished(folder))
    failed = sum(not good for good in after.values())
    console.print(summary(len(after) - failed, failed, output))
    return failed


def _is_parquet(input: Path) -> bool:
    found = sorted(input.iterdir()) if input.is_dir() else [input]
    return any(path.suffix == ".parquet" for path in found)


def finished(folder: Path) -> Iterator[tuple[str, bool]]:
    """The custom_ids of the results in a folder, and whether each was answered. A part of a line, which a
    kill has left, is taken away. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: with --ray the output is a folder")
    for path in sorted(folder.glob("*.jsonl")):
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        for line in whole.splitlines() if whole else ():
            try:
                yield succeeded(line)
            except ValueError:
                raise OutputError(f"{path} holds something else: name another folder") from None


class Send:
    """What an actor does with a block."""

    def __init__(self, target: Target, done: frozenset[str]) -> None:
        self.target, self.done = target, done

    def __call__(self, table: Any) -> Any:
        found: list[str] = []
        requests: list[Request] = []
        for row in table.to_pylist():
            request = read_line(_text(row), row.get("number", 0), self.target.endpoint)
            if isinstance(request, Request):
                if request.custom_id not in self.done:
                    requests.append(request)
            elif succeeded(request)[0] not in self.done:
                found.append(request)
        found += asyncio.run(self._send(requests))
        return pyarrow.table({"line": pyarrow.array(found, pyarrow.large_string())})

    async def _send(self, requests: list[Request]) -> list[str]:
        async with Sender(self.target) as sender:
            return await sender.answer_all(requests)


def _text(row: dict[str, Any]) -> str:
    """A row as a line: JSON Lines as they are; of Parquet `custom_id`, and `body` as JSON or as columns."""
    if "line" in row:
        return str(row["line"])
    body = row.get("body")
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            body = None
    known = {name: row[name] for name in ("custom_id", "method", "url") if row.get(name) is not None}
    return json.dumps(known | {"body": _without_nulls(body)})


def _without_nulls(value: Any) -> Any:
    """A struct of Parquet without the fields that other rows have and this one has not."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
