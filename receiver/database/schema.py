"""The database's tables and views, as programs see them. What creates them is `migrations/`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    TableClause,
    Text,
    TypeDecorator,
    UniqueConstraint,
    column,
    table,
    text,
)

metadata = MetaData()


class UTCDateTime(TypeDecorator[datetime]):
    """A point in time: TIMESTAMP WITH TIME ZONE on PostgreSQL; on SQLite text in UTC, as its date functions read it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Take an aware datetime."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002
        """Give an aware datetime in UTC."""
        if value is None:
            return None
        aware: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return aware


def _partial_index(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


def _id() -> Column[int]:
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), Identity(always=True), primary_key=True)


def _time(name: str) -> Column[datetime]:
    return Column(name, UTCDateTime, nullable=False)


events = Table(
    "events",
    metadata,
    _id(),
    Column("endpoint", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("room_id", Text),
    Column("job_id", Text),
    _time("sent_at"),
    _time("received_at"),
    Column("digest", LargeBinary, nullable=False),
    Column("scene_script_name", Text),
    Column("shoot_script_sequence_no", BigInteger),
    Column("shoot_script_title", Text),
    Column("output_url", Text),
    Column("stream_key", Text),
    Column("state", Text),
    Column("reply_id", Text),
    Column("body", Text, nullable=False),
    UniqueConstraint("sent_at", "digest"),
    _partial_index("events_states", "job_id", "sent_at", where="state IS NOT NULL"),
)

quarantine = Table(
    "quarantine",
    metadata,
    _id(),
    _time("received_at"),
    Column("endpoint", Text, nullable=False),
    _time("sent_at"),
    Column("reason", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("sent_at", "digest"),
)

streams = Table(
    "streams",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("room_id", Text),
    Column("output_url", Text),
    Column("state", Text, nullable=False),
    _time("since"),
    _time("received_at"),
    _partial_index("streams_open", "since", where="state <> 'END'"),
)

# Where a job's events are: from the first on, and none after `sent_until`. A trigger of `events` keeps it.
jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("room_id", Text),
    _time("first_sent_at"),
    _time("sent_until"),
    Index("jobs_first_sent_at", "first_sent_at"),
    Index("jobs_sent_until", "sent_until"),
)


_SQL_TYPES = {
    "id": BigInteger,
    "shoot_script_sequence_no": BigInteger,
    "duration_seconds": Float,
    "connected_seconds": Float,
    **dict.fromkeys(("reconnects", "events", "paragraphs", "replies"), BigInteger),
    **dict.fromkeys(
        ("sent_at", "received_at", "connected_at", "disconnected_at", "started_at", "ended_at"), UTCDateTime
    ),
    **dict.fromkeys(("first_event_at", "last_event_at", "state_since"), UTCDateTime),
}


def _view(name: str, columns: str) -> TableClause:
    return table(name, *(column(one, _SQL_TYPES.get(one, Text)) for one in columns.split()))


_IDS = "id endpoint room_id job_id sent_at received_at"
_PARAGRAPH = "scene_script_name shoot_script_sequence_no shoot_script_title"
shoot_script_switch = _view("shoot_script_switch", f"{_IDS} {_PARAGRAPH}")
rtmp_stream_state_change = _view("rtmp_stream_state_change", f"{_IDS} output_url state")
reply_command_finish = _view("reply_command_finish", f"{_IDS} reply_id")
stream_sessions = _view(
    "stream_sessions", "room_id job_id output_url connected_at disconnected_at duration_seconds ended_by"
)
script_timeline = _view("script_timeline", f"room_id job_id {_PARAGRAPH} started_at ended_at duration_seconds")
live_jobs = _view(
    "live_jobs",
    "room_id job_id first_event_at last_event_at state state_since"
    " connected_seconds reconnects events paragraphs replies",
)
VIEWS = (
    shoot_script_switch,
    rtmp_stream_state_change,
    reply_command_finish,
    stream_sessions,
    script_timeline,
    live_jobs,
)
