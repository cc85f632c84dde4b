"""The tables. Migrations make them; a test compares the two.

Request, result, error and event data are JSON as text, so that what is read is byte for byte what was sent.
Events that were written together share a row: a row for each would cost a run several times as much. Times
are seconds since the epoch.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
)

HEAD = "0006"
"""The newest revision in migrations/versions: the one that this version of the server works with."""

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), comment="the API key that sent it; null without keys"),
    Column("server", String(128), nullable=False, comment="the server process that runs or ran it"),
    Column("alive", Double, nullable=False, comment="when that server last said that it runs"),
    Column("created", Double, nullable=False),
    Column("finished", Double),
    Column("state", String(16), nullable=False, comment="running, completed, failed or cancelled"),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("stop_reason", String(32)),
    Column("iterations", Integer),
    Column("bytes", BigInteger, nullable=False, comment="size of the run with its events, for retention"),
    Column("excerpt", Text, comment="of the prompt, for lists; null: stored before there was one"),
    Column("improved", Boolean),
    Column("win_probability", Double, comment="of what was accepted last"),
    Column("request", Text, nullable=False, comment="without stream, with the run's seed"),
    Column("result", Text),
    Column("error", Text),
    Index("runs_by_created", "created", "id"),
    Index("runs_by_finished", "finished", "bytes"),
    Index("runs_by_state", "state", "server"),
    Index("runs_by_owner", "owner", "created", "id"),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False, comment="of the row's last event"),
    Column("data", Text, nullable=False, comment="events in a row of the run, one a line"),
    # One B-tree, in the order in which events are read.
    sqlite_with_rowid=False,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True, comment="the public part of the key"),
    Column("owner", String(64), nullable=False, comment="its own id, or an earlier key's"),
    Column("name", String(64), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, comment="SHA-256 of the secret part"),
    Column("scopes", String(128), nullable=False, comment="words"),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrency", Integer),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), comment="the API key that made it; null without keys"),
    Column("created", Double, nullable=False),
    Column("expires", Double, comment="when it is deleted; null: never"),
    Column("purpose", String(32), nullable=False, comment="batch, or batch_output"),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("complete", Boolean, nullable=False, comment="false while it is written"),
    Index("files_by_owner", "owner", "created", "id"),
    Index("files_by_expires", "expires"),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", String(64), ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), comment="the API key that made it; null without keys"),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(8), nullable=False),
    Column("status", String(16), nullable=False, comment="as OpenAI's API names them"),
    Column("metadata", Text, comment="JSON"),
    Column("errors", Text, comment="JSON: why the input file was refused"),
    Column("output_expires_s", Integer, comment="how long its output is kept; null: as the server is set"),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, comment="when its completion window ends"),
    Column("in_progress", Double),
    Column("finalizing", Double),
    Column("cancelling", Double),
    Column("ended", Double, comment="when it was completed, failed, expired or cancelled"),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("worker", String(128), comment="the server that reads its input or writes its output"),
    Column("lease", Double, nullable=False, server_default="0", comment="until when that is so"),
    Index("batches_by_owner", "owner", "created", "id"),
    Index("batches_by_status", "status", "created"),
)

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("body", Text, comment="JSON; null once the item is done"),
    Column("worker", String(128), comment="the server that works on it"),
    Column("lease", Double, comment="until when that is so; 0: nobody's; null: it is done"),
    Column("attempts", Integer, nullable=False, comment="how often it was taken in vain"),
    Column("progress", Text, comment="JSON: how far its run has come"),
    Column("succeeded", Boolean, comment="null until it is done"),
    Column("output", Text, comment="its line of the output file, or of the error file"),
    Index("batch_items_open", "batch_id", "lease", "line"),
)

Number = BigInteger().with_variant(Integer, "sqlite")
"""Of an SQLite table that counts by itself; the count never goes back."""

feedback = Table(
    "feedback",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), comment="the API key that sent it; null without keys"),
    Column("created", Double, nullable=False),
    Column("kind", String(16), nullable=False, comment="the request's type"),
    Column("run_id", String(64), comment="the run may be deleted before"),
    Column("subject", String(64), nullable=False, comment="hash of owner and of what it is about"),
    Column("replaced_by", String(64), comment="the later feedback about the same"),
    Column("prompt", Text, nullable=False, comment="messages"),
    Column("response", Text, comment="what was rated"),
    Column("rating", Integer),
    Column("provenance", Text, nullable=False),
    Index("feedback_by_subject", "subject"),
    Index("feedback_by_run", "run_id"),
    Index("feedback_by_created", "created", "id"),
    Index("feedback_by_owner", "owner", "created", "id"),
    sqlite_autoincrement=True,
)

feedback_pairs = Table(
    "feedback_pairs",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("feedback", Number, ForeignKey("feedback.number", ondelete="CASCADE"), nullable=False),
    Column("key", String(64), nullable=False, unique=True, comment="hash of owner, prompt and both texts"),
    Column("digest", String(64), nullable=False, comment="hash of prompt, chosen and rejected"),
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    Index("feedback_pairs_by_feedback", "feedback"),
    Index("feedback_pairs_by_digest", "digest", "number"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(64), primary_key=True, comment="hash of owner, path and key"),
    Column("fingerprint", String(64), nullable=False, comment="hash of the body"),
    Column("created", Double, nullable=False),
    Column("holder", String(32), nullable=False, comment="the execution that has it"),
    Column("lease", Double, nullable=False, comment="until when that execution counts as alive"),
    Column("status", Integer, comment="of the answer; null while it is made"),
    Column("headers", Text),
    Column("body", LargeBinary),
    Index("idempotency_keys_by_created", "created"),
)
