"""The database's tables and views, as programs use them. `migrations/` creates them, with their keys and indexes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

# Columns of `events` by which a paragraph of the script is told, and the product that it is about.
PARAGRAPH = ("scene_script_name", "shoot_script_sequence_no", "shoot_script_title")
PRODUCT = ("live_id", "product_id", "product_title")

metadata = sa.MetaData()
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class UTCDateTime(sa.TypeDecorator[datetime]):
    """A point in time: TIMESTAMP WITH TIME ZONE on PostgreSQL; on SQLite text in UTC, as its date functions read it."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Take an aware datetime."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:  # noqa: ANN401, ARG002
        """Give an aware datetime in UTC."""
        if value is None:
            return None
        aware: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware


def _time(name: str) -> sa.Column[datetime]:
    return sa.Column(name, UTCDateTime, nullable=False)


events = sa.Table(
    "events",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("event_type", sa.Text, nullable=False),
    sa.Column("room_id", sa.Text),
    sa.Column("job_id", sa.Text),
    _time("sent_at"),
    _time("received_at"),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("scene_script_name", sa.Text),
    sa.Column("shoot_script_sequence_no", sa.BigInteger),
    sa.Column("shoot_script_title", sa.Text),
    sa.Column("output_url", sa.Text),
    sa.Column("stream_key", sa.Text),
    sa.Column("state", sa.Text),
    sa.Column("reply_id", sa.Text),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("live_id", sa.Text),
    sa.Column("product_id", sa.Text),
    sa.Column("product_title", sa.Text),
)

quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    _time("received_at"),
    sa.Column("endpoint", sa.Text, nullable=False),
    _time("sent_at"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# The current state of each job's stream.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("room_id", sa.Text),
    sa.Column("output_url", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    _time("since"),
    _time("received_at"),
)

# In which range of `sent_at` each job's events are. The trigger `note_jobs` of `events` keeps it.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("room_id", sa.Text),
    _time("first_sent_at"),
    _time("sent_until"),
)

# The setting `stream_stale_after`, for the view `live_jobs`: one row, which `receiver serve` writes.
stale_after = sa.Table("stale_after", metadata, sa.Column("seconds", sa.BigInteger, nullable=False))

# What the platform says of its jobs, as `receiver reconcile` was told; names and states are the platform's.
platform_jobs = sa.Table(
    "platform_jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("room_id", sa.Text),
    sa.Column("room_name", sa.Text),
    sa.Column("state", sa.Text),
    sa.Column("start_time", UTCDateTime),
    sa.Column("end_time", UTCDateTime),
    sa.Column("stream_duration", sa.Double),
    sa.Column("error_code", sa.Text),
    sa.Column("error_msg", sa.Text),
    sa.Column("block_reason", sa.Text),
    sa.Column("finding", sa.Text),
    _time("checked_at"),
)

# When `receiver reconcile` ran last: one row, NULL before that.
platform_check = sa.Table("platform_check", metadata, sa.Column("checked_at", UTCDateTime))


# For `select` a view is a table; they are apart from those because nothing is stored in them.
views = sa.MetaData()


def _view(name: str, columns: str) -> sa.Table:
    return sa.Table(name, views, *(sa.Column(one, _type(one)) for one in columns.split()))


def _type(column: str) -> type[UTCDateTime | sa.Boolean] | None:
    """The type of a view's column, where SQLite would give something else than PostgreSQL."""
    if column == "stale":
        return sa.Boolean
    return UTCDateTime if column.endswith(("_at", "_since", "_from", "_to")) else None


_IDS = "id endpoint room_id job_id sent_at received_at"
_PARAGRAPH, _PRODUCT = " ".join(PARAGRAPH), " ".join(PRODUCT)
shoot_script_switch = _view("shoot_script_switch", f"{_IDS} {_PARAGRAPH} {_PRODUCT}")
rtmp_stream_state_change = _view("rtmp_stream_state_change", f"{_IDS} output_url state place_in_second")
reply_command_finish = _view("reply_command_finish", f"{_IDS} reply_id")
stream_sessions = _view(
    "stream_sessions", "room_id job_id output_url connected_at disconnected_at duration_seconds ended_by"
)
stream_outages = _view(
    "stream_outages", f"room_id job_id output_url down_from down_to duration_seconds began_with {_PARAGRAPH}"
)
script_timeline = _view(
    "script_timeline", f"room_id job_id {_PARAGRAPH} started_at ended_at duration_seconds {_PRODUCT}"
)
live_jobs = _view(
    "live_jobs",
    "room_id job_id first_event_at last_event_at state state_since"
    " connected_seconds reconnects events paragraphs replies connected_since stale",
)
