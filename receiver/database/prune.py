"""Deletes what is old, whole jobs at a time, in batches, beside receivers that store new events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Table, and_, delete, exists, func, or_, select, true

from receiver.database.database import Database
from receiver.database.schema import events, jobs, platform_jobs, quarantine, streams
from receiver.protocol.events import StreamState

_BATCH = 1000


class Age(NamedTuple):
    """What is old: what was sent before a time, but for jobs that still run.

    A job without END runs while its last event is not older than `stale`.
    """

    before: datetime
    stale: datetime


def count_older(database: Database, age: Age) -> dict[str, int]:
    """How many rows of each table `delete_older` would delete."""
    with database.reading() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
            for table, condition in _conditions(age).items()
        }


def delete_older(database: Database, age: Age) -> Iterator[tuple[str, int]]:
    """Delete what is old: yields each batch's table and number of rows. Nothing waits longer than for a batch.

    A job is deleted with all its events, or keeps them all. What names no job goes by its own time.
    """
    conditions = _conditions(age)
    for table in (events, quarantine):
        yield from _delete_by_time(database, table, age.before, conditions[table])
    with database.reading() as connection:  # of jobs that are kept; or stored a moment ago, and then found next time
        left = select(events.c.job_id).where(events.c.sent_at < age.before, events.c.job_id.is_not(None)).distinct()
        kept = frozenset(connection.scalars(left))
    for table in (jobs, streams, platform_jobs):
        yield from _delete_by_job(database, table, conditions[table], kept)


def _conditions(age: Age) -> dict[Table, ColumnElement[bool]]:
    # The end of a job's range is up to ten minutes late. It is taken for the last event, so that no event is read.
    stream = streams.alias()
    is_open = exists().where(stream.c.job_id == jobs.c.job_id, stream.c.state != StreamState.END)
    kept = or_(jobs.c.sent_until >= age.before, and_(jobs.c.sent_until >= age.stale, is_open.correlate(jobs)))

    def of_kept(table: Table) -> ColumnElement[bool]:
        return exists().where(jobs.c.job_id == table.c.job_id, kept).correlate(table)

    ended = or_(streams.c.state == StreamState.END, streams.c.since < age.stale)
    return {
        events: and_(events.c.sent_at < age.before, ~of_kept(events)),
        quarantine: quarantine.c.sent_at < age.before,
        streams: and_(streams.c.since < age.before, ended, ~of_kept(streams)),
        jobs: and_(jobs.c.sent_until < age.before, ~kept),
        platform_jobs: and_(platform_jobs.c.checked_at < age.before, ~of_kept(platform_jobs)),
    }


def _delete_by_time(
    database: Database, table: Table, before: datetime, condition: ColumnElement[bool]
) -> Iterator[tuple[str, int]]:
    """Delete in the order of time; what is stored behind the place that was reached is left for the next time."""
    sent_at = table.c.sent_at
    # PostgreSQL keeps what is deleted in the index until it is vacuumed. So that is read past once, without limits of
    # time, and not again by each batch, which begins where the one before it ended.
    with database.reading() as connection:
        oldest = connection.scalar(select(func.min(sent_at)).where(sent_at < before))
    if oldest is None:
        return
    rest = and_(sent_at >= oldest, sent_at < before)
    while True:
        in_order = select(sent_at).where(rest).order_by(sent_at)
        with database.transaction() as connection:
            last: datetime | None = connection.scalar(in_order.offset(_BATCH - 1).limit(1))
            batch = rest if last is None else and_(rest, sent_at <= last)
            deleted = connection.execute(delete(table).where(batch, condition)).rowcount
        yield table.name, deleted
        if last is None:
            return
        rest = and_(sent_at > last, sent_at < before)


def _delete_by_job(
    database: Database, table: Table, condition: ColumnElement[bool], kept: frozenset[str]
) -> Iterator[tuple[str, int]]:
    job_id = table.c.job_id
    after: ColumnElement[bool] = true()
    while True:
        with database.transaction() as connection:
            page = connection.scalars(select(job_id).where(after, condition).order_by(job_id).limit(_BATCH)).all()
            ids = [one for one in page if one not in kept]
            deleted = connection.execute(delete(table).where(job_id.in_(ids), condition)).rowcount
        yield table.name, deleted
        if len(page) < _BATCH:
            return
        after = job_id > page[-1]
