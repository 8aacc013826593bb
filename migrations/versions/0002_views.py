"""The views for people, and what makes them quick: the table jobs, and an index of the stream states."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)

# The order of one job's events. The digest decides where both times are the same, so that it is one order everywhere.
_ORDER = "ORDER BY sent_at, received_at, digest"

# Where to look for a job's events: the table's one key begins with the time, and there is no index by job.
_IN_RANGE = "e.job_id = j.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until"

# One statement for all rows of an insert; in the order of the jobs, so that two receivers never wait in a circle.
# Rows inside the known range, which is nearly all, are only looked up: receivers do not queue for their jobs' rows.
_POSTGRESQL_TRIGGER = (
    """
    CREATE FUNCTION note_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO jobs AS known (job_id, room_id, first_sent_at, sent_until)
        SELECT e.job_id, max(e.room_id), min(e.sent_at), max(e.sent_at) + interval '10 minutes'
        FROM stored AS e
        WHERE e.job_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM jobs AS j
            WHERE j.job_id = e.job_id AND e.sent_at BETWEEN j.first_sent_at AND j.sent_until
                AND (e.room_id IS NULL OR j.room_id IS NOT NULL)
        )
        GROUP BY e.job_id
        ORDER BY e.job_id
        ON CONFLICT (job_id) DO UPDATE SET
            room_id = coalesce(known.room_id, excluded.room_id),
            first_sent_at = least(known.first_sent_at, excluded.first_sent_at),
            sent_until = greatest(known.sent_until, excluded.sent_until);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_jobs AFTER INSERT ON events
    REFERENCING NEW TABLE AS stored FOR EACH STATEMENT EXECUTE FUNCTION note_jobs()
    """,
)

# SQLite has triggers for each row only. No upsert: the outer statement's ON CONFLICT could be taken for its own.
_SQLITE_LATER = "coalesce(strftime('%Y-%m-%d %H:%M:%f', {}, '+10 minutes') || '000', '9999-12-31 23:59:59.999999')"
_SQLITE_TRIGGER = (
    f"""
    CREATE TRIGGER note_jobs AFTER INSERT ON events
    WHEN NEW.job_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM jobs AS j
        WHERE j.job_id = NEW.job_id AND NEW.sent_at BETWEEN j.first_sent_at AND j.sent_until
            AND (NEW.room_id IS NULL OR j.room_id IS NOT NULL)
    )
    BEGIN
        UPDATE jobs SET
            room_id = coalesce(room_id, NEW.room_id),
            first_sent_at = min(first_sent_at, NEW.sent_at),
            sent_until = max(sent_until, {_SQLITE_LATER.format("NEW.sent_at")})
        WHERE job_id = NEW.job_id;
        INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
        SELECT NEW.job_id, NEW.room_id, NEW.sent_at, {_SQLITE_LATER.format("NEW.sent_at")}
        WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = NEW.job_id);
    END
    """,  # noqa: S608 (our own text)
)

_KNOWN_JOBS = """
    INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
    SELECT job_id, max(room_id), min(sent_at), {}
    FROM events WHERE job_id IS NOT NULL GROUP BY job_id
"""


class _Dialect(NamedTuple):
    """What the two databases say differently. `{}` is an expression of two times' difference, or of a time."""

    trigger: tuple[str, ...]
    later: str  # ten minutes after a time
    duration: str  # from one time to another, in what can be summed
    seconds: str  # the same in seconds, as a floating-point number
    jobs_events: str  # each job with its events, job by job


_SQLITE = _Dialect(
    trigger=_SQLITE_TRIGGER,
    later=_SQLITE_LATER,
    # In microseconds: as a floating-point number of days, a time is exact to 30 of them only.
    duration="({micros_to} - {micros_from})",
    seconds="({} / 1000000.0)",
    jobs_events=f"jobs AS j CROSS JOIN events AS e ON {_IN_RANGE}",  # which SQLite joins in the order as written
)
_POSTGRESQL = _Dialect(
    trigger=_POSTGRESQL_TRIGGER,
    later="{} + interval '10 minutes'",
    duration="({to} - {from_})",
    seconds="CAST(extract(epoch FROM {}) AS double precision)",
    # The planner cannot guess how few events a range holds, and would read the whole table for a day's jobs.
    jobs_events=f"jobs AS j CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE {_IN_RANGE} OFFSET 0) AS e",  # noqa: S608
)


def upgrade() -> None:
    """Create the table jobs with its trigger, fill it from the events, and create the views."""
    dialect = _SQLITE if op.get_context().dialect.name == "sqlite" else _POSTGRESQL
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("room_id", sa.Text),
        sa.Column("first_sent_at", _TIME, nullable=False),
        sa.Column("sent_until", _TIME, nullable=False),
    )
    for statement in dialect.trigger:  # before the rows that are there are read: none comes in between
        op.execute(sa.text(statement.replace(":", r"\:")))
    later = dialect.later.format("max(sent_at)").replace(":", r"\:")
    op.execute(sa.text(_KNOWN_JOBS.format(later)))
    op.create_index("jobs_first_sent_at", "jobs", ["first_sent_at"])
    has_state = sa.text("state IS NOT NULL")
    op.create_index(
        "events_states", "events", ["job_id", "sent_at"], sqlite_where=has_state, postgresql_where=has_state
    )
    is_open = sa.text("state <> 'END'")
    op.create_index("streams_open", "streams", ["since"], sqlite_where=is_open, postgresql_where=is_open)
    for name, query in _views(dialect).items():
        op.execute(sa.text(f"CREATE VIEW {name} AS {query}".replace(":", r"\:")))


def _views(dialect: _Dialect) -> dict[str, str]:
    return {
        "shoot_script_switch": _events_of(
            "SHOOT_SCRIPT_SWITCH", "e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title"
        ),
        "rtmp_stream_state_change": _STATE_CHANGES,
        "reply_command_finish": _events_of("REPLY_COMMAND_FINISH", "e.reply_id"),
        "stream_sessions": _stream_sessions(dialect),
        "script_timeline": _script_timeline(dialect),
        "live_jobs": _live_jobs(dialect),
    }


_IDS = "e.id, e.endpoint, e.room_id, e.job_id, e.sent_at, e.received_at"
_STATE_CHANGES = f"""
    SELECT {_IDS}, e.output_url, e.state
    FROM events AS e
    WHERE e.event_type = 'RTMP_STREAM_STATE_CHANGE' AND e.state IS NOT NULL
"""  # noqa: S608 (our own text)


def _events_of(event_type: str, columns: str) -> str:
    return f"""
        SELECT {_IDS}, {columns}
        FROM events AS e JOIN jobs AS j ON {_IN_RANGE}
        WHERE e.event_type = '{event_type}'
    """  # noqa: S608


def _seconds(dialect: _Dialect, from_: str, to: str, aggregate: str = "") -> str:
    micros = "(CAST(strftime('%s', {0}) AS INTEGER) * 1000000 + CAST(substr({0}, 21, 6) AS INTEGER))"
    duration = dialect.duration.format(
        from_=from_, to=to, micros_from=micros.format(from_), micros_to=micros.format(to)
    )
    return dialect.seconds.format(f"{aggregate}({duration})")


def _connections(source: str, columns: str) -> str:
    """Each event with what it means for the connection: where a session `begins`, and its `end_at` and `end_state`.

    Every window is over the job's columns, so that a condition on these is applied before and not after it.
    """
    job = "room_id, job_id, first_sent_at"
    return f"""
        SELECT *,
            CASE WHEN begins THEN lead(sent_at) OVER (PARTITION BY {job}, turns {_ORDER}) END AS end_at,
            CASE WHEN begins THEN lead(state) OVER (PARTITION BY {job}, turns {_ORDER}) END AS end_state
        FROM (
            SELECT *, begins OR (state <> 'CONNECTED' AND coalesce(state_before, '') = 'CONNECTED') AS turns
            FROM (
                SELECT *, coalesce(state = 'CONNECTED', FALSE)
                    AND (coalesce(state_before, '') <> 'CONNECTED' OR coalesce(url <> url_before, FALSE)) AS begins
                FROM (
                    SELECT *,
                        lag(state) OVER (PARTITION BY {job}, has_state {_ORDER}) AS state_before,
                        lag(url) OVER (PARTITION BY {job}, has_state {_ORDER}) AS url_before
                    FROM (
                        SELECT *, max(output_url) OVER (PARTITION BY {job}, urls) AS url
                        FROM (
                            SELECT *, count(output_url) OVER (PARTITION BY {job} {_ORDER}) AS urls
                            FROM (
                                SELECT j.room_id, j.job_id, j.first_sent_at, e.sent_at, e.received_at, e.digest,
                                    e.output_url, e.state, e.state IS NOT NULL AS has_state{columns}
                                FROM {source}
                            ) AS found
                        ) AS numbered
                    ) AS located
                ) AS compared
            ) AS begun
        ) AS turned
    """  # noqa: S608


def _stream_sessions(dialect: _Dialect) -> str:
    connections = _connections("jobs AS j JOIN events AS e ON e.job_id = j.job_id AND e.state IS NOT NULL", "")
    return f"""
        SELECT room_id, job_id, url AS output_url, sent_at AS connected_at, end_at AS disconnected_at,
            {_seconds(dialect, "sent_at", "end_at")} AS duration_seconds, end_state AS ended_by
        FROM ({connections}) AS connections
        WHERE begins
    """  # noqa: S608


def _script_timeline(dialect: _Dialect) -> str:
    return f"""
        SELECT room_id, job_id, scene_script_name, shoot_script_sequence_no, shoot_script_title,
            sent_at AS started_at, end_at AS ended_at, {_seconds(dialect, "sent_at", "end_at")} AS duration_seconds
        FROM (
            SELECT *, lead(sent_at) OVER (PARTITION BY room_id, job_id {_ORDER}) AS end_at
            FROM (
                SELECT j.room_id, j.job_id, e.event_type, e.sent_at, e.received_at, e.digest,
                    e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title
                FROM jobs AS j JOIN events AS e ON {_IN_RANGE}
                WHERE e.event_type = 'SHOOT_SCRIPT_SWITCH'
                    OR (e.event_type = 'RTMP_STREAM_STATE_CHANGE' AND e.state = 'END')
            ) AS found
        ) AS ordered
        WHERE event_type = 'SHOOT_SCRIPT_SWITCH'
    """  # noqa: S608


def _live_jobs(dialect: _Dialect) -> str:
    connections = _connections(dialect.jobs_events, ", e.event_type")
    connected = _seconds(dialect, "connected_at", "connected_until", "sum")
    return f"""
        SELECT g.room_id, g.job_id, g.first_event_at, g.last_event_at, s.state, s.since AS state_since,
            g.connected_seconds, g.reconnects, g.events, g.paragraphs, g.replies
        FROM (
            SELECT room_id, job_id, first_sent_at AS first_event_at, max(sent_at) AS last_event_at,
                coalesce({connected}, 0.0) AS connected_seconds,
                count(reconnected) - count(DISTINCT reconnected) AS reconnects,
                count(*) AS events,
                count(CASE WHEN event_type = 'SHOOT_SCRIPT_SWITCH' THEN 1 END) AS paragraphs,
                count(CASE WHEN event_type = 'REPLY_COMMAND_FINISH' THEN 1 END) AS replies
            FROM (
                SELECT *,
                    CASE WHEN begins THEN sent_at END AS connected_at,
                    CASE WHEN begins THEN coalesce(end_at, last_sent_at) END AS connected_until,
                    CASE WHEN begins AND coalesce(state_before, '') <> 'CONNECTED' THEN 1 END AS reconnected
                FROM (
                    SELECT *, max(sent_at) OVER (PARTITION BY room_id, job_id, first_sent_at) AS last_sent_at
                    FROM ({connections}) AS connections
                ) AS bounded
            ) AS told
            GROUP BY room_id, job_id, first_sent_at
        ) AS g LEFT JOIN streams AS s ON s.job_id = g.job_id
    """  # noqa: S608
