"""End a batch: its results become files, those of requests that were not executed too."""

from sqlalchemy import Connection

from app.batch.lines import unexecuted_line
from app.settings import Settings
from app.store.batch_queue import BatchQueue, NotOurs, end
from app.store.batches import BatchRecord, BatchStatus
from app.store.files import FileStore, FileWriter, complete

PAGE = 100
"""Results that are read at a time."""
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "The batch was cancelled before this request was executed.")


async def write_output(
    batch: BatchRecord, worker: str, files: FileStore, queue: BatchQueue, settings: Settings
) -> BatchStatus:
    """Write the output file and the error file, each where it has a line, and end the batch: all of it is
    seen at once. Returns what the batch has become.

    Raises `NotOurs` when somebody else has taken the batch.
    """
    keep_s = batch.output_expires_s or 86400 * settings.file_retention_days or None
    cancelled = batch.status == "cancelling"
    names = [f"{batch.id}_{what}.jsonl" for what in ("output", "error")]
    async with (
        files.new(batch.owner, "batch_output", names[0]) as output,
        files.new(batch.owner, "batch_output", names[1]) as errors,
    ):
        all_executed = await _write_lines(batch, worker, queue, output, errors, settings.batch_lease_s)
        status: BatchStatus = "cancelled" if cancelled else "completed" if all_executed else "expired"

        def work(connection: Connection) -> None:
            ids = {}
            for name, writer in (("output_file_id", output), ("error_file_id", errors)):
                if writer.bytes:
                    ids[name] = complete(connection, writer, keep_s).id
            if not end(connection, batch.id, worker, {"status": status} | ids):
                raise NotOurs

        await files.database.write(work)
    return status


async def _write_lines(
    batch: BatchRecord,
    worker: str,
    queue: BatchQueue,
    output: FileWriter,
    errors: FileWriter,
    lease_s: float,
) -> bool:
    """Write the lines of all items in their order; whether each was executed."""
    all_executed, last = True, 0
    reason = CANCELLED if batch.status == "cancelling" else EXPIRED
    # A batch that was cancelled while its input was read has no requests yet.
    while batch.in_progress is not None and (rows := await queue.rows(batch.id, last, PAGE)):
        for row in rows:
            text = unexecuted_line(row.custom_id, *reason) if row.output is None else row.output
            all_executed = all_executed and row.output is not None
            await (output if row.succeeded else errors).write(text.encode() + b"\n")
        last = rows[-1].line
        if not await queue.extend_batch(batch.id, worker, lease_s):
            raise NotOurs
    await output.finish()
    await errors.finish()
    return all_executed
