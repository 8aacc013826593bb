"""Products in the events, the order within a second in the views, the view stream_outages, and which jobs are stale."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from receiver.database.migration import execute_sql_file

revision = "0003"
down_revision = "0002"

_CHANGED = (  # each before what it is made of
    "live_jobs",
    "script_timeline",
    "stream_sessions",
    "rtmp_stream_state_change",
    "shoot_script_switch",
)
_VIEWS = ("ordered_events", *reversed(_CHANGED), "stream_outages")
_STALE_AFTER = 43200  # seconds: the default of the setting stream_stale_after, until a receiver writes its own


def upgrade() -> None:
    """Add the columns, which stay NULL in what is there, create the views anew, and set streams by the new order."""
    for name in ("live_id", "product_id", "product_title"):
        # Not filled from the bodies that are there: millions of rows would be written anew, and nothing be stored
        # until that ended.
        op.add_column("events", sa.Column(name, sa.Text))
    stale_after = op.create_table("stale_after", sa.Column("seconds", sa.BigInteger, nullable=False))
    op.bulk_insert(stale_after, [{"seconds": _STALE_AFTER}])
    # Of one event in a hundred: so the states of a month are found without reading its paragraphs.
    has_state = sa.text("state IS NOT NULL")
    op.create_index("events_states_sent_at", "events", ["sent_at"], sqlite_where=has_state, postgresql_where=has_state)
    # On SQLite the id is the row's own number.
    if op.get_context().dialect.name == "postgresql":
        op.create_index("events_id", "events", ["id"])
    for name in _CHANGED:
        op.execute(f"DROP VIEW {name}")
    for name in (*_VIEWS, "set_streams"):
        execute_sql_file(op.get_bind(), revision, name)
