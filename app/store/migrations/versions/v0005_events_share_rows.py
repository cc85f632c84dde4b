"""Events that are written together share a row: their types, which their JSON begins with, are no column."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_column("run_events", "type")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("run_events", "number", comment="of the row's last event")
        op.alter_column("run_events", "data", comment="events in a row of the run, one a line")
