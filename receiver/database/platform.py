"""What the platform says of its jobs: stored by `receiver reconcile`, and compared with what came."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Table, and_, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.schema import jobs, platform_check, platform_jobs, streams
from receiver.protocol.events import StreamState
from receiver.protocol.platform import ENDED, OPEN, Finding

_IDS_A_QUERY = 500  # far below the number of parameters that a database takes
_AS_FOUND = ("finding", "checked_at")  # set also where nothing is found; of the others what is known stays


class OpenJob(NamedTuple):
    """A job that has not ended as far as is known here; `first_sent_at` is None where nothing of it came."""

    job_id: str
    room_id: str | None
    first_sent_at: datetime | None


def open_jobs(connection: Connection, stale_before: datetime) -> list[OpenJob]:
    """The jobs that have not ended as far as is known here, the latest first.

    Not those that the platform has ended, or had not when it was asked and that sent nothing since `stale_before`.
    """
    job, there = streams.c, platform_jobs.c
    is_stale = exists().where(jobs.c.job_id == job.job_id, jobs.c.sent_until < stale_before)
    is_known = exists().where(
        there.job_id == job.job_id,
        or_(there.state.in_(ENDED), and_(there.finding == Finding.UNKNOWN_THERE, is_stale.correlate(streams))),
    )
    first = select(jobs.c.first_sent_at).where(jobs.c.job_id == job.job_id).scalar_subquery()
    here = select(job.job_id, job.room_id, first).where(job.state != StreamState.END, ~is_known)
    found = [OpenJob(*row) for row in connection.execute(here.order_by(job.since.desc()))]
    seen = {one.job_id for one in found}
    running = select(there.job_id, there.room_id).where(
        there.state.in_(OPEN), or_(there.finding.is_(None), there.finding != Finding.UNKNOWN_THERE)
    )
    return found + [OpenJob(*row, None) for row in connection.execute(running) if row[0] not in seen]


def rows_of(connection: Connection, table: Table, ids: Sequence[str]) -> dict[str, Row]:
    """The rows of these jobs in `live_jobs` or `platform_jobs`, by id, as far as there are any."""
    batches = (ids[first : first + _IDS_A_QUERY] for first in range(0, len(ids), _IDS_A_QUERY))
    queries = (select(table).where(table.c.job_id.in_(batch)) for batch in batches)
    return {row["job_id"]: dict(row) for query in queries for row in connection.execute(query).mappings()}


def room_names(connection: Connection) -> dict[str, str]:
    """The names of rooms, by id, as far as the platform was asked: the latest one of each."""
    there, latest = platform_jobs.c, func.max(platform_jobs.c.checked_at)
    query = select(there.room_id, there.room_name).where(there.room_id.is_not(None), there.room_name.is_not(None))
    rows = connection.execute(query.group_by(there.room_id, there.room_name).order_by(latest))
    return {row.room_id: row.room_name for row in rows}


def save_platform_jobs(database: Database, rows: Sequence[Row], checked_at: datetime) -> None:
    """Store what was found about these jobs, and that all were looked at.

    What was missing and has come since is missing no more.
    """
    has_end = exists().where(streams.c.job_id == platform_jobs.c.job_id, streams.c.state == StreamState.END)
    came = update(platform_jobs).where(platform_jobs.c.finding == Finding.END_MISSING, has_end).values(finding=None)
    with database.transaction() as connection:
        if rows:
            connection.execute(_upsert(database), sorted(rows, key=lambda row: str(row["job_id"])))
        connection.execute(came)
        connection.execute(update(platform_check).values(checked_at=checked_at))


def add_platform_jobs(database: Database, rows: Sequence[Row]) -> None:
    """Store rows of another database's `platform_jobs`, in the order of their keys, unless those here are newer."""
    with database.transaction() as connection:
        connection.execute(_upsert(database, only_newer=True), rows)


def add_platform_check(database: Database, checked_at: datetime) -> None:
    """Note when another database's jobs were looked at, unless those here were looked at later."""
    here = platform_check.c.checked_at
    with database.transaction() as connection:
        connection.execute(
            update(platform_check).where(or_(here.is_(None), here < checked_at)).values(checked_at=checked_at)
        )


def _upsert(database: Database, *, only_newer: bool = False) -> sqlite.Insert | postgresql.Insert:
    insert: sqlite.Insert | postgresql.Insert
    insert = sqlite.insert(platform_jobs) if database.is_sqlite else postgresql.insert(platform_jobs)
    old, new = platform_jobs.c, insert.excluded
    others = {column.name for column in old} - {"job_id", *_AS_FOUND}
    return insert.on_conflict_do_update(
        index_elements=["job_id"],
        set_={name: new[name] for name in _AS_FOUND} | {name: func.coalesce(new[name], old[name]) for name in others},
        where=new.checked_at > old.checked_at if only_newer else None,
    )


def platform_findings(database: Database) -> tuple[dict[str, int], datetime | None]:
    """How many jobs there are of each finding, of those that were looked at last, and when that was."""
    finding, at = platform_jobs.c.finding, select(platform_check.c.checked_at)
    query = select(finding, func.count().label("jobs")).where(platform_jobs.c.checked_at == at.scalar_subquery())
    counts: dict[str, int] = dict.fromkeys(Finding, 0)
    counts |= {
        row["finding"]: row["jobs"] for row in database.read(query.group_by(finding)) if row["finding"] in counts
    }
    return counts, next((row["checked_at"] for row in database.read(at)), None)
