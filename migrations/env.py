"""Alembic's environment: runs the migrations on the connection that the receiver (or the command line) gives it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from receiver.database.schema import metadata


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:  # `alembic -x url=sqlite:///… revision --autogenerate`, by a developer
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as own:
        _run(own)
