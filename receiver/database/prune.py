"""Deletes what was sent before a time, in batches, beside receivers that store new events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select, update

from receiver.database.database import Database, of_job
from receiver.database.schema import events, jobs, quarantine, streams
from receiver.protocol.events import StreamState

_BATCH = 1000


def count_older(database: Database, before: datetime) -> dict[str, int]:
    """How many rows of each table `delete_older` would delete."""
    with database.reading() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
            for table, condition in _conditions(before).items()
        }


def delete_older(database: Database, before: datetime) -> Iterator[tuple[str, int]]:
    """Delete what was sent before a time: yields each batch's table and number of rows.

    Of the streams only ended ones are deleted. Nothing waits longer than for a batch.
    """
    for table in (events, quarantine):
        yield from _delete_by_time(database, table, before)
    # Without limits of time, as in _delete_by_time.
    with database.reading() as connection:
        late = select(events.c.job_id).where(events.c.sent_at < before, events.c.job_id.is_not(None))
        late_jobs = connection.scalars(late.distinct()).all()
    with database.transaction() as connection:
        deleted = connection.execute(delete(streams).where(_conditions(before)[streams])).rowcount
        _shorten_ranges(connection, before, late_jobs)
    yield streams.name, deleted


def _conditions(before: datetime) -> dict[Table, ColumnElement[bool]]:
    return {
        events: events.c.sent_at < before,
        quarantine: quarantine.c.sent_at < before,
        streams: and_(streams.c.state == StreamState.END, streams.c.since < before),
    }


def _delete_by_time(database: Database, table: Table, before: datetime) -> Iterator[tuple[str, int]]:
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
            deleted = connection.execute(delete(table).where(batch)).rowcount
        yield table.name, deleted
        if last is None:
            return
        rest = and_(sent_at > last, sent_at < before)


def _shorten_ranges(connection: Connection, before: datetime, late_jobs: Sequence[str]) -> None:
    """Of the ranges of `jobs`, delete those without events, and let the others begin with their first event.

    Those of jobs with events that came too late to be deleted stay as they are. A range that another receiver extends
    in the meantime stays as that receiver leaves it.
    """
    is_done = jobs.c.job_id.not_in(late_jobs)
    connection.execute(delete(jobs).where(jobs.c.sent_until < before, is_done))
    begun = select(jobs.c.job_id, jobs.c.first_sent_at, jobs.c.sent_until).where(jobs.c.first_sent_at < before, is_done)
    for job_id, first, until in connection.execute(begun).all():
        remaining = select(func.min(events.c.sent_at)).where(of_job(job_id), events.c.sent_at >= before)
        oldest = connection.scalar(remaining)
        unchanged = and_(jobs.c.job_id == job_id, jobs.c.first_sent_at == first, jobs.c.sent_until == until)
        if oldest is None:
            connection.execute(delete(jobs).where(unchanged))
        else:
            connection.execute(update(jobs).where(unchanged).values(first_sent_at=oldest))
