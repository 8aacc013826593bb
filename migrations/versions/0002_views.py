"""The views for people, and what makes them quick: the table jobs, and an index of the stream states."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from receiver.database.migration import execute_sql_file

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_VIEWS = (
    "shoot_script_switch",
    "rtmp_stream_state_change",
    "reply_command_finish",
    "stream_sessions",
    "script_timeline",
    "live_jobs",
)


def upgrade() -> None:
    """Create the table jobs with its trigger, fill it from the events, and create the views."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("room_id", sa.Text),
        sa.Column("first_sent_at", _TIME, nullable=False),
        sa.Column("sent_until", _TIME, nullable=False),
    )
    # The trigger first: then no event is missed that another receiver stores in between.
    for name in ("note_jobs", "fill_jobs"):
        execute_sql_file(op.get_bind(), revision, name)
    op.create_index("jobs_first_sent_at", "jobs", ["first_sent_at"])
    op.create_index("jobs_sent_until", "jobs", ["sent_until"])
    has_state = sa.text("state IS NOT NULL")
    op.create_index(
        "events_states", "events", ["job_id", "sent_at"], sqlite_where=has_state, postgresql_where=has_state
    )
    is_open = sa.text("state <> 'END'")
    op.create_index("streams_open", "streams", ["since"], sqlite_where=is_open, postgresql_where=is_open)
    for name in _VIEWS:
        execute_sql_file(op.get_bind(), revision, name)
