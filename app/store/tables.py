"""The tables. Migrations make them; a test compares the two.

Request, result, error and event data are JSON as text, so that what is read is byte for byte what was sent.
Times are seconds since the epoch.
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

HEAD = "0003"
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
    Column("request", Text, nullable=False, comment="without stream, with the run's seed"),
    Column("result", Text),
    Column("error", Text),
    Index("runs_by_created", "created", "id"),
    Index("runs_by_finished", "finished", "bytes"),
    Index("runs_by_state", "state", "server"),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("type", String(32), nullable=False),
    Column("data", Text, nullable=False),
    # One B-tree, in the order in which events are read.
    sqlite_with_rowid=False,
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
    Index("feedback_by_created", "created"),
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
