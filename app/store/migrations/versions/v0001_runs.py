"""Runs and their events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), comment="the API key that sent it; null without keys"),
        sa.Column("server", sa.String(128), nullable=False, comment="the server process that runs or ran it"),
        sa.Column("alive", sa.Double, nullable=False, comment="when that server last said that it runs"),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column(
            "state", sa.String(16), nullable=False, comment="running, completed, failed or cancelled"
        ),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("stop_reason", sa.String(32)),
        sa.Column("iterations", sa.Integer),
        sa.Column(
            "bytes", sa.BigInteger, nullable=False, comment="size of the run with its events, for retention"
        ),
        sa.Column("request", sa.Text, nullable=False, comment="without stream, with the run's seed"),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
    )
    op.create_index("runs_by_created", "runs", ["created", "id"])
    op.create_index("runs_by_finished", "runs", ["finished", "bytes"])
    op.create_index("runs_by_state", "runs", ["state", "server"])
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
