"""Deletes all that is stored of one job, in batches, beside receivers that store new events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from sqlalchemy import ColumnElement, LargeBinary, Table, delete, func, literal, or_, select, tuple_

from receiver.database.database import Database, of_job
from receiver.database.insert import Key
from receiver.database.schema import events, jobs, metadata, quarantine

_EVENTS, _BODIES = 1000, 100  # in a batch; bodies may be of a MiB each

# Those with a row for the job, which are deleted last: without its row in `jobs` its events are not found. `jobs` comes
# first because receivers lock it first.
_OF_JOBS = sorted(
    (table for table in metadata.tables.values() if "job_id" in table.c and table is not events),
    key=lambda table: (table is not jobs, table.name),
)


def count_job(database: Database, job_id: str) -> dict[str, int]:
    """How many rows of each table `delete_job` would delete."""
    conditions = {events: of_job(job_id)} | {table: table.c.job_id == job_id for table in _OF_JOBS}
    with database.reading() as connection:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
            for table, condition in conditions.items()
        }
    naming = sum(map(len, _naming(database, job_id)))
    return {events.name: counts.pop(events.name), quarantine.name: naming} | counts


def delete_job(database: Database, job_id: str) -> Iterator[tuple[str, int]]:
    """Delete a job's events, what names it in the quarantine, and its rows in other tables.

    Yields each batch's table and number of rows. It can be broken off, and done again.
    """
    for table, batches in ((events, _events(database, job_id)), (quarantine, _naming(database, job_id))):
        for keys in batches:
            with database.transaction() as connection:
                deleted = connection.execute(delete(table).where(_key(table).in_(keys))).rowcount
            yield table.name, deleted
    with database.transaction() as connection:
        late = connection.execute(delete(events).where(of_job(job_id))).rowcount  # stored in the meantime
        rows = [(one, connection.execute(delete(one).where(one.c.job_id == job_id)).rowcount) for one in _OF_JOBS]
    yield events.name, late
    yield from ((table.name, deleted) for table, deleted in rows)


def _events(database: Database, job_id: str) -> Iterator[list[Key]]:
    for rows in _batches(database, events, of_job(job_id), _EVENTS):
        yield [key for key, _ in rows]


def _naming(database: Database, job_id: str) -> Iterator[list[Key]]:
    """The keys of quarantined deliveries whose bodies name the job, as a whole word, in whatever they are."""
    spelled = [one.encode() for one in dict.fromkeys((job_id, _escaped(job_id), _escaped(_escaped(job_id))))]
    word = re.compile(rb"(?<![\w-])(?:%s)(?![\w-])" % b"|".join(map(re.escape, spelled)))
    contains = _contains_sqlite if database.is_sqlite else _contains_postgresql
    for rows in _batches(database, quarantine, or_(*map(contains, spelled)), _BODIES):
        yield [key for key, body in rows if word.search(body)]


def _batches(
    database: Database, table: Table, condition: ColumnElement[bool], size: int
) -> Iterator[list[tuple[Key, bytes]]]:
    """Keys and bodies of rows, in order, read outside of the transactions that delete: those are short."""
    body = table.c.body if table is quarantine else literal(b"")
    query = select(table.c.sent_at, table.c.digest, body).where(condition).order_by(table.c.sent_at, table.c.digest)
    after: Key | None = None
    while True:
        with database.reading() as connection:
            rows = [
                ((sent_at, digest), found)
                for sent_at, digest, found in connection.execute(
                    (query if after is None else query.where(_key(table) > _literal(table, after))).limit(size)
                )
            ]
        if rows:
            yield rows
        if len(rows) < size:
            return
        after = rows[-1][0]


def _key(table: Table) -> ColumnElement[Key]:
    return tuple_(table.c.sent_at, table.c.digest)


def _literal(table: Table, key: Key) -> ColumnElement[Key]:
    return tuple_(literal(key[0], table.c.sent_at.type), literal(key[1], table.c.digest.type))


def _escaped(text: str) -> str:
    """As it stands in a JSON string."""
    return json.dumps(text)[1:-1]


def _contains_sqlite(part: bytes) -> ColumnElement[bool]:
    return func.instr(quarantine.c.body, part) > 0


def _contains_postgresql(part: bytes) -> ColumnElement[bool]:
    return func.position(literal(part, LargeBinary()).op("IN")(quarantine.c.body)) > 0
