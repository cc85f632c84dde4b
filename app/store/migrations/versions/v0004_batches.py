"""Files and batches."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _files()
    _batches()


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), comment="the API key that made it; null without keys"),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, comment="when it is deleted; null: never"),
        sa.Column("purpose", sa.String(32), nullable=False, comment="batch, or batch_output"),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False, comment="false while it is written"),
    )
    op.create_index("files_by_owner", "files", ["owner", "created", "id"])
    op.create_index("files_by_expires", "files", ["expires"])
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.String(64), sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), comment="the API key that made it; null without keys"),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("completion_window", sa.String(8), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, comment="as OpenAI's API names them"),
        sa.Column("metadata", sa.Text, comment="JSON"),
        sa.Column("errors", sa.Text, comment="JSON: why the input file was refused"),
        sa.Column(
            "output_expires_s", sa.Integer, comment="how long its output is kept; null: as the server is set"
        ),
        sa.Column("output_file_id", sa.String(64)),
        sa.Column("error_file_id", sa.String(64)),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False, comment="when its completion window ends"),
        sa.Column("in_progress", sa.Double),
        sa.Column("finalizing", sa.Double),
        sa.Column("cancelling", sa.Double),
        sa.Column("ended", sa.Double, comment="when it was completed, failed, expired or cancelled"),
        sa.Column("total", sa.Integer, nullable=False, server_default="0"),
        sa.Column("completed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("worker", sa.String(128), comment="the server that reads its input or writes its output"),
        sa.Column("lease", sa.Double, nullable=False, server_default="0", comment="until when that is so"),
    )
    op.create_index("batches_by_owner", "batches", ["owner", "created", "id"])
    op.create_index("batches_by_status", "batches", ["status", "created"])
    op.create_table(
        "batch_items",
        sa.Column(
            "batch_id", sa.String(64), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("body", sa.Text, comment="JSON; null once the item is done"),
        sa.Column("worker", sa.String(128), comment="the server that works on it"),
        sa.Column("lease", sa.Double, comment="until when that is so; 0: nobody's; null: it is done"),
        sa.Column("attempts", sa.Integer, nullable=False, comment="how often it was taken in vain"),
        sa.Column("progress", sa.Text, comment="JSON: how far its run has come"),
        sa.Column("succeeded", sa.Boolean, comment="null until it is done"),
        sa.Column("output", sa.Text, comment="its line of the output file, or of the error file"),
    )
    op.create_index("batch_items_open", "batch_items", ["batch_id", "lease", "line"])
