"""All that one database holds, brought into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Column, Table

from receiver.database.database import Database, RefusedError, Stored
from receiver.database.insert import Row
from receiver.database.schema import events, quarantine, streams

_BATCH = 200  # rows, which may be of a MiB each

# What each table is unique by, and is read in the order of.
KEYS: dict[Table, tuple[Column[object], ...]] = {
    events: (events.c.sent_at, events.c.digest),
    quarantine: (quarantine.c.sent_at, quarantine.c.digest),
    streams: (streams.c.job_id,),
}


class Copied(NamedTuple):
    """A batch that is in the target: of how many rows, and how many of them it did not have before."""

    rows: int
    events: int
    quarantined: int


def copy(source: Database, target: Database) -> Iterator[Copied]:
    """Store in `target` what is in `source`, batch by batch, each in a transaction.

    What is there already stays as it is, so that this can be broken off and done again, also while receivers store into
    either. An event that the target refuses goes to its quarantine as ``refused``.
    """
    for table, key in KEYS.items():
        after: Row | None = None
        while rows := source.page(table, key, limit=_BATCH, after=after):
            stored = _put(target, table, rows)
            yield Copied(len(rows), sum(len(one.events) for one in stored), sum(len(one.quarantine) for one in stored))
            after = rows[-1]


def _put(target: Database, table: Table, rows: Sequence[Row]) -> list[Stored]:
    if table is streams:
        # After the events, of which they are made too: `prune` may have left a job's state without its events.
        target.store_streams(rows)
        return []
    if table is quarantine:
        return [target.store([], rows)]
    try:
        return [target.store(rows, [])]
    except RefusedError:
        return [_put_alone(target, row) for row in rows]


def _put_alone(target: Database, row: Row) -> Stored:
    try:
        return target.store([row], [])
    except RefusedError:
        kept = {name: row[name] for name in ("endpoint", "sent_at", "received_at", "digest")}
        return target.store([], [kept | {"reason": "refused", "body": row["body"].encode()}])
