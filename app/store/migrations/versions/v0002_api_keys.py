"""API keys; the runs of one owner in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True, comment="the public part of the key"),
        sa.Column(
            "owner",
            sa.String(64),
            nullable=False,
            comment="its own id, or an earlier key's",
        ),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, comment="SHA-256 of the secret part"),
        sa.Column("scopes", sa.String(128), nullable=False, comment="words"),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.Column("revoked", sa.Double),
    )
    op.create_index("runs_by_owner", "runs", ["owner", "created", "id"])
