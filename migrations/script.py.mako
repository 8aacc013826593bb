"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from receiver.database.migration import execute_sql_file

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Say what changes, and why."""
