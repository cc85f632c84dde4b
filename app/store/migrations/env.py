"""Alembic's entry: migrates the connection, and in the transaction, that `Database.upgrade` hands over."""

from alembic import context
from sqlalchemy import text

from app.store.tables import metadata

LOCK = 7_310_289_889  # any number, the same for every server: one at a time migrates

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
