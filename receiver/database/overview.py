"""What the status page shows of the database: the live jobs, the latest ones, what is stale, and the latest events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Table, literal_column, or_, select, text

from receiver.database.database import Database
from receiver.database.follow import ordered_events
from receiver.database.history import JobHistory, job_history, latest_jobs
from receiver.database.insert import Row
from receiver.database.migration import READ_REVISION, REVISION, require_revision
from receiver.database.platform import room_names, rows_of
from receiver.database.schema import (
    jobs,
    live_jobs,
    platform_check,
    platform_jobs,
    stale_after,
    stream_outages,
    stream_sessions,
    streams,
)
from receiver.database.streams import is_stale
from receiver.protocol.events import EventType, StreamState

BAR = timedelta(hours=1)  # of a live stream
_MOST = 20  # rows of a kind
MOST_OF_A_JOB = 500  # rows of each kind, of one job
_INSTRUCTIONS = 100_000  # of SQLite's machine, between two looks at the clock: some milliseconds
_IS_OPEN = streams.c.state != literal_column(f"'{StreamState.END}'")  # as the index streams_open has it


class Overview(NamedTuple):
    """Rows of `live_jobs` with room name and the platform's state, and of the other views.

    `on_now` are rows of `ordered_events`, by job, of the paragraph that was played last. `sessions` and `outages` are
    those of the live jobs that reach into the last hour.
    """

    live: list[Row]
    has_more_live: bool
    latest: list[Row]
    on_now: dict[str, Row]
    sessions: list[Row]
    outages: list[Row]
    stale: list[Row]
    events: list[Row]
    findings: list[Row]
    checked_at: datetime | None


@contextmanager
def reading(database: Database, seconds: float) -> Iterator[Connection]:
    """A transaction that only reads, and in which a query ends with an error when so many seconds are over.

    That is beside the deadline for a server that does not answer. Raises `SchemaError`.
    """
    with database.transaction(read_only=True) as connection:
        if database.is_sqlite:
            end = time.monotonic() + seconds
            own: Any = connection.connection.driver_connection
            own.set_progress_handler(lambda: time.monotonic() > end, _INSTRUCTIONS)
        else:
            connection.execute(text(f"SET LOCAL statement_timeout = {int(1000 * seconds)}"))
        if connection.scalar(READ_REVISION) != REVISION:
            require_revision(connection)
        yield connection


def overview(connection: Connection, now: datetime) -> Overview:
    """All that the page at `/` shows."""
    stale_before = now - timedelta(seconds=connection.scalar(select(stale_after.c.seconds)) or 0)
    live_ids = _live_ids(connection, stale_before)
    latest = latest_jobs(connection)
    known = {row["job_id"]: row for row in latest}
    live = [
        row
        for row in [*known.values(), *_others(connection, [one for one in live_ids[:_MOST] if one not in known])]
        if row["job_id"] in live_ids and not row["stale"]
    ]
    ids = [row["job_id"] for row in live]
    checked_at = connection.scalar(select(platform_check.c.checked_at))
    return Overview(
        live=live,
        has_more_live=len(live_ids) > _MOST,
        latest=latest,
        on_now=_on_now(connection, ids),
        sessions=_spans(connection, stream_sessions, ids, now),
        outages=_spans(connection, stream_outages, ids, now),
        stale=_stale(connection, stale_before),
        events=_rows(connection, select(ordered_events).order_by(ordered_events.c.id.desc()).limit(_MOST)),
        findings=_findings(connection, checked_at),
        checked_at=checked_at,
    )


def job(connection: Connection, job_id: str) -> JobHistory:
    """The history of one job, with the latest rows of each kind; raises `UnknownJobError`."""
    return job_history(connection, job_id, most=MOST_OF_A_JOB)


def _live_ids(connection: Connection, stale_before: datetime) -> Sequence[str]:
    """The jobs without END whose events reach beyond `stale_before`, the latest first, and one more than is shown."""
    query = select(jobs.c.job_id).join(streams, streams.c.job_id == jobs.c.job_id)
    query = query.where(_IS_OPEN, jobs.c.sent_until >= stale_before)
    return connection.scalars(query.order_by(jobs.c.sent_until.desc()).limit(_MOST + 1)).all()


def _others(connection: Connection, ids: Sequence[str]) -> list[Row]:
    """Rows as `latest_jobs` has them."""
    if not ids:
        return []
    names, there = room_names(connection), rows_of(connection, platform_jobs, ids)
    return [
        row | {"room_name": names.get(row["room_id"]), "platform_state": there.get(row["job_id"], {}).get("state")}
        for row in rows_of(connection, live_jobs, ids).values()
    ]


def _on_now(connection: Connection, ids: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    event = ordered_events.c
    for row in _rows(connection, select(jobs).where(jobs.c.job_id.in_(ids))) if ids else ():
        # There is no index of all events by job: they are looked through from the job's end back.
        query = select(ordered_events).where(
            event.job_id == row["job_id"],
            event.event_type == EventType.SHOOT_SCRIPT_SWITCH,
            event.sent_at.between(row["first_sent_at"], row["sent_until"]),
        )
        query = query.order_by(event.sent_at.desc(), event.received_at.desc()).limit(1)
        found.update((str(one["job_id"]), one) for one in _rows(connection, query))
    return found


def _spans(connection: Connection, view: Table, ids: Sequence[str], now: datetime) -> list[Row]:
    if not ids:
        return []
    ended = view.c["disconnected_at" if view is stream_sessions else "down_to"]
    return _rows(connection, select(view).where(view.c.job_id.in_(ids), or_(ended.is_(None), ended >= now - BAR)))


def _stale(connection: Connection, stale_before: datetime) -> list[Row]:
    query = select(
        streams.c.job_id,
        streams.c.room_id,
        streams.c.state,
        streams.c.since,
        platform_jobs.c.state.label("platform_state"),
    )
    query = query.outerjoin(platform_jobs, platform_jobs.c.job_id == streams.c.job_id)
    return _rows(
        connection, query.where(_IS_OPEN, is_stale(stale_before)).order_by(streams.c.since.desc()).limit(_MOST)
    )


def _findings(connection: Connection, checked_at: datetime | None) -> list[Row]:
    there = platform_jobs.c
    query = select(platform_jobs).where(there.checked_at == checked_at, there.finding.is_not(None))
    return _rows(connection, query.order_by(there.job_id).limit(_MOST)) if checked_at is not None else []


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
