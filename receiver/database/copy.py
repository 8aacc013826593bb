"""Copies all that one database holds into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Column, Table, func, literal, select, tuple_

from receiver.database.database import Database, Stored
from receiver.database.errors import RefusedError
from receiver.database.insert import Row
from receiver.database.platform import add_platform_check, add_platform_jobs
from receiver.database.rows import delivery_columns
from receiver.database.schema import events, platform_check, platform_jobs, quarantine, streams
from receiver.database.streams import set_streams

_BATCH = 200  # rows, which may be of a MiB each

# The unique key of each table, in whose order it is read. Streams come after the events, which make some of them:
# others are left of jobs whose events were pruned. Not read are `jobs`, which the trigger of `events` makes, and
# `stale_after`, which is a setting of the target's receivers.
_KEYS: dict[Table, tuple[Column[object], ...]] = {
    events: (events.c.sent_at, events.c.digest),
    quarantine: (quarantine.c.sent_at, quarantine.c.digest),
    streams: (streams.c.job_id,),
    platform_jobs: (platform_jobs.c.job_id,),
}


class Copied(NamedTuple):
    """A batch that is stored in the target: how many rows, and how many events and quarantined rows were new."""

    rows: int
    events: int
    quarantined: int


def count_rows(database: Database) -> int:
    """How many rows there are to copy."""
    with database.reading() as connection:
        return sum(connection.scalar(select(func.count()).select_from(table)) or 0 for table in _KEYS)


def copy(source: Database, target: Database) -> Iterator[Copied]:
    """Store in `target` what is in `source`, batch by batch, each in a transaction.

    Rows that the target has stay, unless they tell of an older state, so it can be interrupted and repeated, also while
    receivers store into either. An event that the target refuses goes to its quarantine, with the reason ``refused``.
    """
    for table, key in _KEYS.items():
        after: Row | None = None
        while rows := _read(source, table, key, after):
            stored = _store(target, table, rows)
            yield Copied(len(rows), sum(len(one.events) for one in stored), sum(len(one.quarantine) for one in stored))
            after = rows[-1]
    for row in source.read(select(platform_check).where(platform_check.c.checked_at.is_not(None))):
        add_platform_check(target, row["checked_at"])


def _read(source: Database, table: Table, key: Sequence[Column[object]], after: Row | None) -> list[Row]:
    """The next rows in the order of the key, without their ids."""
    query = select(*(column for column in table.c if column.name != "id")).order_by(*key).limit(_BATCH)
    if after is not None:
        query = query.where(tuple_(*key) > tuple_(*(literal(after[one.name], one.type) for one in key)))
    return source.read(query)


def _store(target: Database, table: Table, rows: Sequence[Row]) -> list[Stored]:
    if table is streams:
        with target.transaction() as connection:
            set_streams(connection, rows)
        return []
    if table is platform_jobs:
        add_platform_jobs(target, rows)
        return []
    if table is quarantine:
        return [target.store([], rows)]
    try:
        return [target.store(rows, [])]
    except RefusedError:
        return [_store_alone(target, row) for row in rows]


def _store_alone(target: Database, row: Row) -> Stored:
    try:
        return target.store([row], [])
    except RefusedError:
        return target.store([], [delivery_columns(row) | {"reason": "refused", "body": row["body"].encode()}])
