"""What the lists of runs and of feedback show and are read by. Runs that are there stay as they are: their
part of a list is made from their request and result when it is read."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column("excerpt", sa.Text, comment="of the prompt, for lists; null: stored before there was one"),
    )
    op.add_column("runs", sa.Column("improved", sa.Boolean))
    op.add_column("runs", sa.Column("win_probability", sa.Double, comment="of what was accepted last"))
    op.drop_index("feedback_by_created", "feedback")
    op.create_index("feedback_by_created", "feedback", ["created", "id"])
    op.create_index("feedback_by_owner", "feedback", ["owner", "created", "id"])
