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
_JOB = "room_id, job_id, first_sent_at"

# Where to look for a job's events: the table's one key begins with the time, and there is no index by job.
_IN_RANGE = "e.sent_at BETWEEN j.first_sent_at AND j.sent_until"

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

# SQLite has triggers for each row only.
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
        INSERT INTO jobs (job_id, room_id, first_sent_at, sent_until)
        VALUES (NEW.job_id, NEW.room_id, NEW.sent_at, {_SQLITE_LATER.format("NEW.sent_at")})
        ON CONFLICT (job_id) DO UPDATE SET
            room_id = coalesce(room_id, excluded.room_id),
            first_sent_at = min(first_sent_at, excluded.first_sent_at),
            sent_until = max(sent_until, excluded.sent_until);
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
    join: str  # each job `j` with those events `e` for which `{}`: job by job, whatever the planner thinks of that
    is_its: str  # that an event is the job's, where its time says where to look for it
    hint: str  # what is true of an event in its job's range anyway


_SQLITE = _Dialect(
    trigger=_SQLITE_TRIGGER,
    later=_SQLITE_LATER,
    # In microseconds: as a floating-point number of days, a time is exact to 30 of them only.
    duration="({micros_to} - {micros_from})",
    seconds="({} / 1000000.0)",
    join="jobs AS j CROSS JOIN events AS e ON {}",  # which SQLite joins in the order as written
    is_its="+e.job_id = j.job_id",  # without the plus it would make an index of all events, for one query
    hint="",
)
_POSTGRESQL = _Dialect(
    trigger=_POSTGRESQL_TRIGGER,
    later="{} + interval '10 minutes'",
    duration="({to} - {from_})",
    seconds="CAST(extract(epoch FROM {}) AS double precision)",
    # The planner cannot know how few events a range holds, and would read the whole table for one day's jobs.
    join="jobs AS j CROSS JOIN LATERAL (SELECT * FROM events AS e WHERE {} OFFSET 0) AS e",
    is_its="e.job_id = j.job_id",
    # Each comparison of two columns is guessed to leave a third of the rows: four make the planner try the range.
    hint=" AND (e.sent_at, e.digest) >= (j.first_sent_at, CAST('' AS bytea))"
    " AND (e.sent_at, e.digest) < (j.sent_until + interval '1 second', CAST('' AS bytea))",
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
    op.create_index("jobs_sent_until", "jobs", ["sent_until"])
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
            dialect, "SHOOT_SCRIPT_SWITCH", "e.scene_script_name, e.shoot_script_sequence_no, e.shoot_script_title"
        ),
        "rtmp_stream_state_change": _STATE_CHANGES,
        "reply_command_finish": _events_of(dialect, "REPLY_COMMAND_FINISH", "e.reply_id"),
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


def _events_of(dialect: _Dialect, event_type: str, columns: str) -> str:
    return f"""
        SELECT {_IDS}, {columns}
        FROM events AS e JOIN jobs AS j ON e.job_id = j.job_id AND {_IN_RANGE}{dialect.hint}
        WHERE e.event_type = '{event_type}'
    """  # noqa: S608


def _events_in_range(dialect: _Dialect) -> str:
    return dialect.join.format(f"{dialect.is_its} AND {_IN_RANGE}")


def _seconds(dialect: _Dialect, from_: str, to: str, aggregate: str = "{}") -> str:
    micros = "(CAST(strftime('%s', {0}) AS INTEGER) * 1000000 + CAST(substr({0}, 21, 6) AS INTEGER))"
    duration = dialect.duration.format(
        from_=from_, to=to, micros_from=micros.format(from_), micros_to=micros.format(to)
    )
    return dialect.seconds.format(aggregate.format(duration))


def _connections(dialect: _Dialect) -> str:
    """Each state change with what it means for the connection: whether a session `begins`, where and how it ends.

    Every window is over the job's columns, so that a condition on these is applied before and not after it.
    """
    return f"""
        SELECT *,
            CASE WHEN begins THEN lead(sent_at) OVER (PARTITION BY {_JOB}, turns {_ORDER}) END AS end_at,
            CASE WHEN begins THEN lead(state) OVER (PARTITION BY {_JOB}, turns {_ORDER}) END AS end_state
        FROM (
            SELECT *, begins OR (state <> 'CONNECTED' AND coalesce(state_before, '') = 'CONNECTED') AS turns
            FROM (
                SELECT *, state = 'CONNECTED'
                    AND (coalesce(state_before, '') <> 'CONNECTED' OR coalesce(url <> url_before, FALSE)) AS begins
                FROM (
                    SELECT *,
                        lag(state) OVER (PARTITION BY {_JOB} {_ORDER}) AS state_before,
                        lag(url) OVER (PARTITION BY {_JOB} {_ORDER}) AS url_before
                    FROM (
                        SELECT *, max(output_url) OVER (PARTITION BY {_JOB}, urls) AS url
                        FROM (
                            SELECT j.room_id, j.job_id, j.first_sent_at, e.sent_at, e.received_at, e.digest,
                                e.state, e.output_url,
                                count(e.output_url) OVER (
                                    PARTITION BY j.room_id, j.job_id, j.first_sent_at
                                    ORDER BY e.sent_at, e.received_at, e.digest
                                ) AS urls
                            FROM {dialect.join.format("e.job_id = j.job_id AND e.state IS NOT NULL")}
                        ) AS numbered
                    ) AS located
                ) AS compared
            ) AS begun
        ) AS turned
    """  # noqa: S608


def _stream_sessions(dialect: _Dialect) -> str:
    connections = _connections(dialect)
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
                FROM {_events_in_range(dialect)}
                WHERE e.event_type = 'SHOOT_SCRIPT_SWITCH' OR e.state = 'END'
            ) AS found
        ) AS ordered
        WHERE event_type = 'SHOOT_SCRIPT_SWITCH'
    """  # noqa: S608


def _live_jobs(dialect: _Dialect) -> str:
    """A row that counts the job's events and a row for each session, put together job by job."""
    connections = _connections(dialect)
    connected = _seconds(dialect, "connected_at", "connected_until", f"sum({{}}) OVER (PARTITION BY {_JOB})")
    return f"""
        SELECT g.room_id, g.job_id, g.first_sent_at AS first_event_at, g.last_sent_at AS last_event_at,
            s.state, s.since AS state_since, coalesce(g.connected_seconds, 0.0) AS connected_seconds,
            g.connections - g.any_connections AS reconnects, g.events, g.paragraphs, g.replies
        FROM (
            SELECT *, {connected} AS connected_seconds,
                count(connection) OVER (PARTITION BY {_JOB}) AS connections,
                coalesce(max(connection) OVER (PARTITION BY {_JOB}), 0) AS any_connections
            FROM (
                SELECT *, CASE WHEN connected_at IS NOT NULL
                    THEN coalesce(end_at, max(last_sent_at) OVER (PARTITION BY {_JOB})) END AS connected_until
                FROM (
                    SELECT j.room_id, j.job_id, j.first_sent_at, max(e.sent_at) AS last_sent_at, count(*) AS events,
                        count(CASE WHEN e.event_type = 'SHOOT_SCRIPT_SWITCH' THEN 1 END) AS paragraphs,
                        count(CASE WHEN e.event_type = 'REPLY_COMMAND_FINISH' THEN 1 END) AS replies,
                        NULL AS connected_at, NULL AS end_at, NULL AS connection
                    FROM {_events_in_range(dialect)}
                    GROUP BY j.first_sent_at, j.job_id, j.room_id
                    UNION ALL
                    SELECT room_id, job_id, first_sent_at, NULL, NULL, NULL, NULL, sent_at, end_at,
                        CASE WHEN coalesce(state_before, '') <> 'CONNECTED' THEN 1 END
                    FROM ({connections}) AS connections
                    WHERE begins
                ) AS found
            ) AS bounded
        ) AS g LEFT JOIN streams AS s ON s.job_id = g.job_id
        WHERE g.events IS NOT NULL
    """  # noqa: S608
