"""Stored runs: SQLAlchemy tables, Alembic migrations, one writer task, retention."""
