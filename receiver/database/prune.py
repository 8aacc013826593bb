"""Deletes what was sent before a time, in batches, beside receivers that store new events."""

from __future__ import annotations

from collections.abc import Iterator
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
    with database.transaction() as connection:
        deleted = connection.execute(delete(streams).where(_conditions(before)[streams])).rowcount
        _shorten_ranges(connection, before)
    yield streams.name, deleted


def _conditions(before: datetime) -> dict[Table, ColumnElement[bool]]:
    return {
        events: events.c.sent_at < before,
        quarantine: quarantine.c.sent_at < before,
        streams: and_(streams.c.state == StreamState.END, streams.c.since < before),
    }


def _delete_by_time(database: Database, table: Table, before: datetime) -> Iterator[tuple[str, int]]:
    sent_at = table.c.sent_at
    oldest = select(sent_at).where(sent_at < before).order_by(sent_at)
    last: datetime | None = before
    while last is not None:
        with database.transaction() as connection:
            last = connection.scalar(oldest.offset(_BATCH - 1).limit(1))
            condition = sent_at < before if last is None else sent_at <= last
            deleted = connection.execute(delete(table).where(condition)).rowcount
        yield table.name, deleted


def _shorten_ranges(connection: Connection, before: datetime) -> None:
    """Of the ranges of `jobs`, delete those without events, and let the others begin with their first event.

    A range that another receiver extends in the meantime stays as that receiver leaves it.
    """
    still_there = select(events.c.job_id).where(events.c.sent_at < before, events.c.job_id.is_not(None))
    connection.execute(delete(jobs).where(jobs.c.sent_until < before, jobs.c.job_id.not_in(still_there)))
    begun = select(jobs.c.job_id, jobs.c.first_sent_at, jobs.c.sent_until).where(jobs.c.first_sent_at < before)
    for job_id, first, until in connection.execute(begun).all():
        oldest = connection.scalar(select(events.c.sent_at).where(of_job(job_id)).order_by(events.c.sent_at).limit(1))
        unchanged = and_(jobs.c.job_id == job_id, jobs.c.first_sent_at == first, jobs.c.sent_until == until)
        if oldest is None:
            connection.execute(delete(jobs).where(unchanged))
        else:
            connection.execute(update(jobs).where(unchanged).values(first_sent_at=oldest))
