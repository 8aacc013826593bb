"""Alembic's environment: runs the migrations on the connection that the receiver gives it."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
