"""Read a batch's input file: every line of it becomes an item, or the batch is refused."""

from contextlib import aclosing
from typing import Any

from app.api.render import dumps
from app.batch.lines import BadLine, parse_request, split_lines
from app.settings import Settings
from app.store.batch_queue import BatchQueue, NotOurs
from app.store.batches import BatchRecord
from app.store.files import FileStore

PAGE = 200
"""Items that are added in one transaction."""
MOST_ERRORS = 100
"""Bad lines of a file that are named."""


class _Reader:
    """One reading. Bad lines are collected; with the first of them nothing is added any more."""

    def __init__(self, batch: BatchRecord, settings: Settings) -> None:
        self.batch, self.settings = batch, settings
        self.seen: set[str] = set()
        self.page: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []

    def read(self, number: int, raw: bytes | None) -> None:
        try:
            if raw is None:
                limit = self.settings.max_body_bytes
                raise BadLine("line_too_long", f"This line has more than {limit} bytes.")
            line = parse_request(raw, self.batch.endpoint)
            if line.custom_id in self.seen:
                message = "The custom_id of this request is that of an earlier line too."
                raise BadLine("duplicate_custom_id", message, "custom_id")
            self.seen.add(line.custom_id)
            self.page.append({"line": number, "custom_id": line.custom_id, "body": line.body})
        except BadLine as bad:
            self.errors.append(bad.at(number))


async def read_input(
    batch: BatchRecord, worker: str, files: FileStore, queue: BatchQueue, settings: Settings
) -> bool:
    """Make the items of a batch of its input file. False: the file is refused, and the batch has failed.

    Raises `NotOurs` when somebody else has taken the batch.
    """
    lease_s, reader = settings.batch_lease_s, _Reader(batch, settings)

    async def add_page() -> None:
        if not await queue.add_items(batch.id, worker, reader.page, lease_s):
            raise NotOurs
        reader.page.clear()

    if not await queue.clear_items(batch.id, worker):
        raise NotOurs
    if await files.get(batch.owner, batch.input_file_id) is None:
        gone = BadLine("file_not_found", "The input file was deleted.", "input_file_id")
        reader.errors.append(gone.at(None))
    lines = split_lines(files.chunks(batch.input_file_id), settings.max_body_bytes)
    async with aclosing(lines):
        async for number, raw in lines:
            reader.read(number, raw)
            if len(reader.seen) > settings.batch_max_lines:
                most = f"A batch has {settings.batch_max_lines} lines at most."
                reader.errors.append(BadLine("too_many_lines", most).at(number))
                break
            if len(reader.page) >= PAGE:
                await add_page()
            if len(reader.errors) >= MOST_ERRORS:
                break
    if not reader.seen and not reader.errors:
        reader.errors.append(BadLine("empty_file", "The input file has no lines.", "input_file_id").at(None))
    if reader.errors:
        await queue.fail(batch.id, worker, dumps(reader.errors))
        return False
    await add_page()
    await queue.begin(batch.id, worker, len(reader.seen))
    return True
