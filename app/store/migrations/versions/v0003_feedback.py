"""Feedback with its preference pairs, and the answers kept for an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), comment="the API key that sent it; null without keys"),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False, comment="the request's type"),
        sa.Column("run_id", sa.String(64), comment="the run may be deleted before"),
        sa.Column(
            "subject", sa.String(64), nullable=False, comment="hash of owner and of what it is about"
        ),
        sa.Column("replaced_by", sa.String(64), comment="the later feedback about the same"),
        sa.Column("prompt", sa.Text, nullable=False, comment="messages"),
        sa.Column("response", sa.Text, comment="what was rated"),
        sa.Column("rating", sa.Integer),
        sa.Column("provenance", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("feedback_by_subject", "feedback", ["subject"])
    op.create_index("feedback_by_run", "feedback", ["run_id"])
    op.create_index("feedback_by_created", "feedback", ["created"])
    op.create_table(
        "feedback_pairs",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column(
            "feedback", NUMBER, sa.ForeignKey("feedback.number", ondelete="CASCADE"), nullable=False
        ),
        sa.Column(
            "key", sa.String(64), nullable=False, unique=True, comment="hash of owner, prompt and both texts"
        ),
        sa.Column(
            "digest", sa.String(64), nullable=False, comment="hash of prompt, chosen and rejected"
        ),
        sa.Column("chosen", sa.Text, nullable=False),
        sa.Column("rejected", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("feedback_pairs_by_feedback", "feedback_pairs", ["feedback"])
    op.create_index("feedback_pairs_by_digest", "feedback_pairs", ["digest", "number"])
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(64), primary_key=True, comment="hash of owner, path and key"),
        sa.Column("fingerprint", sa.String(64), nullable=False, comment="hash of the body"),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("holder", sa.String(32), nullable=False, comment="the execution that has it"),
        sa.Column(
            "lease", sa.Double, nullable=False, comment="until when that execution counts as alive"
        ),
        sa.Column("status", sa.Integer, comment="of the answer; null while it is made"),
        sa.Column("headers", sa.Text),
        sa.Column("body", sa.LargeBinary),
    )
    op.create_index("idempotency_keys_by_created", "idempotency_keys", ["created"])
