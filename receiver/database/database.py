"""The database for people: SQLite by default, PostgreSQL when shared. Every write is here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, delete, func, literal, or_, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from receiver.database.engine import READ_ONLY, Deadline, connect
from receiver.database.insert import Key, Row, given, in_json, insert_new
from receiver.database.job_ranges import narrow, of_job
from receiver.database.migration import REVISION, require_revision, require_revision_still, revision_of, upgrade
from receiver.database.schema import events, quarantine, streams
from receiver.protocol.events import StreamState

logger = logging.getLogger(__name__)

_PRUNE_BATCH = 1000
_NO_LIMITS = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"
_MIGRATION_LOCK = 0x4D53_5341  # any number that only this program uses as an advisory lock

# Classes of SQLSTATE: data, integrity, CHECK OPTION, program limits (such as an index row's size), a trigger's RAISE.
_REFUSALS = frozenset({"22", "23", "44", "54", "P0"})


class RefusedError(Exception):
    """The database refuses a row for its content, so that trying again is of no use. The message shows none of it."""


class Stored(NamedTuple):
    """The keys of the rows that were not there yet, by table."""

    events: set[Key]
    quarantine: set[Key]


class Database:
    """The database at `url`, an SQLAlchemy URL of SQLite or PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url)
        self._deadline = Deadline(self._engine)
        self.is_sqlite = self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def migrate(self) -> tuple[str | None, str]:
        """Bring the schema to this program's revision; returns the revisions before and after."""
        with self._engine.begin() as connection:
            if not self.is_sqlite:  # where BEGIN IMMEDIATE is the lock
                # Another migration, or a table of many rows, may take as long as it takes.
                connection.execute(text(_NO_LIMITS))
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            before = revision_of(connection)
            if before not in (None, REVISION):
                # May take minutes; until then nothing is stored.
                logger.info("schema migration begins", extra={"revision": before})
            if before != REVISION:
                upgrade(connection)
        if before not in (None, REVISION):
            logger.info("schema migrated", extra={"revision": REVISION})
        return before, REVISION

    def prepare(self) -> None:
        """Bring the schema to this program's where the database is SQLite; else `check_schema`: others may share it."""
        if self.is_sqlite:
            self.migrate()
        else:
            self.check_schema()

    def check_schema(self) -> None:
        """Raise `SchemaError` unless the schema is this program's."""
        with self._begin(read_only=True) as connection:
            require_revision(connection)

    def store(self, event_rows: Sequence[Row], quarantine_rows: Sequence[Row]) -> Stored:
        """Keep all rows, in one transaction; returns the keys of those that were not there yet.

        Raises `RefusedError`, and keeps none, where one of them is refused, and `SchemaError` where the schema is no
        longer this program's.
        """
        with _refusals(), self._begin() as connection:
            return self._store(connection, event_rows, quarantine_rows)

    def stream_states(self) -> list[tuple[str, int]]:
        """How many jobs are in each stream state."""
        with self._begin(read_only=True) as connection:
            found = connection.execute(select(streams.c.state, func.count()).group_by(streams.c.state))
            return [(state, count) for state, count in found]

    def job(self, job_id: str) -> list[Row]:
        """The events of one job, in order."""
        query = select(events).where(of_job(job_id)).order_by(events.c.sent_at, events.c.received_at)
        with self._begin(read_only=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def quarantined(self, *, limit: int, after: int = 0, reason: str | None = None) -> list[Row]:
        """Rows of the quarantine, the oldest first, with an id above `after`."""
        query = select(quarantine).where(quarantine.c.id > after).order_by(quarantine.c.id).limit(limit)
        if reason is not None:
            query = query.where(quarantine.c.reason == reason)
        with self._begin(read_only=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def release(self, row_id: int, event_row: Row) -> bool:
        """Move a row from the quarantine to the events; returns whether the event was not there yet.

        Raises `RefusedError`, and moves nothing, where the database refuses it as an event.
        """
        with _refusals(), self._begin() as connection:
            stored = self._store(connection, [event_row], [])
            connection.execute(delete(quarantine).where(quarantine.c.id == row_id))
        return bool(stored.events)

    def prune(self, before: datetime) -> Iterator[tuple[str, int]]:
        """Delete what was sent before a time, batch by batch: yields each batch's table and number of rows.

        Of the streams only ended ones go. What is younger is not touched, and nothing waits longer than for a batch.
        """
        for table in (events, quarantine):
            sent_at = table.c.sent_at
            oldest = select(sent_at).where(sent_at < before).order_by(sent_at)
            while True:
                with self._begin() as connection:
                    last = connection.scalar(oldest.offset(_PRUNE_BATCH - 1).limit(1))
                    doomed = sent_at < before if last is None else sent_at <= last
                    deleted = connection.execute(delete(table).where(doomed)).rowcount
                yield table.name, deleted
                if last is None:
                    break
        with self._begin() as connection:
            deleted = connection.execute(delete(streams).where(_ended(before))).rowcount
            narrow(connection, before)
        yield streams.name, deleted

    def count_older(self, before: datetime) -> dict[str, int]:
        """How many rows of each table `prune` would delete."""
        doomed = {events: events.c.sent_at < before, quarantine: quarantine.c.sent_at < before, streams: _ended(before)}
        with self.reading() as connection:
            return {
                table.name: connection.scalar(select(func.count()).select_from(table).where(condition)) or 0
                for table, condition in doomed.items()
            }

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: it takes as long as it takes, and holds nobody up."""
        with self._engine.execution_options(**{READ_ONLY: True}).begin() as connection:
            if not self.is_sqlite:
                connection.execute(text(_NO_LIMITS))
            yield connection

    def sizes(self) -> dict[str, int]:
        """How many rows each table has."""
        with self.reading() as connection:
            return {
                table.name: connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (events, quarantine, streams)
            }

    def page(self, table: Table, key: Sequence[Column[Any]], *, limit: int, after: Row | None) -> list[Row]:
        """Rows of a table without their ids, in the order of the columns `key`, behind those of the row `after`."""
        query = select(*(column for column in table.c if column.name != "id")).order_by(*key).limit(limit)
        if after is not None:
            query = query.where(tuple_(*key) > tuple_(*(literal(after[one.name], one.type) for one in key)))
        with self._begin(read_only=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def store_streams(self, rows: Sequence[Row]) -> None:
        """Set the jobs' current states, in the order of the jobs, where none that is newer is there."""
        with self._begin() as connection:
            self._set_streams(connection, rows)

    def drop_connections(self) -> None:
        """Begin with a new connection the next time, as after any failure."""
        self._engine.dispose()

    @contextmanager
    def _begin(self, *, read_only: bool = False) -> Iterator[Connection]:
        engine = self._engine.execution_options(**{READ_ONLY: read_only})
        with self._deadline.watch(), engine.begin() as connection:
            yield connection

    def _store(self, connection: Connection, event_rows: Sequence[Row], quarantine_rows: Sequence[Row]) -> Stored:
        # In one order for all receivers that share the database, so that none waits for another in a circle.
        new_events = _distinct(event_rows)
        stored = Stored(
            insert_new(connection, events, new_events), insert_new(connection, quarantine, _distinct(quarantine_rows))
        )
        # Not those that were there already: a repeat says what was so then, and may come after what is so now.
        newest = _newest_states(row for key, row in new_events.items() if key in stored.events)
        if newest:
            self._set_streams(connection, newest)
        # Afterwards: a migration that the rows had to wait for is done by now.
        require_revision_still(connection)
        return stored

    def _set_streams(self, connection: Connection, rows: Sequence[Row]) -> None:
        connection.execute(self._upsert_streams(), [*rows] if self.is_sqlite else {"rows": in_json(rows)})

    def _upsert_streams(self) -> sqlite.Insert | postgresql.Insert:
        """Set a job's current state, unless the one that is there is newer."""
        insert: sqlite.Insert | postgresql.Insert
        if self.is_sqlite:
            insert = sqlite.insert(streams)
        else:
            names = list(streams.columns.keys())
            insert = postgresql.insert(streams).from_select(names, given(streams, names))
        old, new = streams.c, insert.excluded
        same_time_and_later = and_(new.since == old.since, new.received_at >= old.received_at)
        return insert.on_conflict_do_update(
            index_elements=["job_id"],
            set_={
                "room_id": func.coalesce(new.room_id, old.room_id),
                "output_url": func.coalesce(new.output_url, old.output_url),
                "state": new.state,
                "since": new.since,
                "received_at": new.received_at,
            },
            where=or_(new.since > old.since, same_time_and_later),
        )


def _ended(before: datetime) -> ColumnElement[bool]:
    return and_(streams.c.state == StreamState.END, streams.c.since < before)


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell what a row's content is refused for, by the database or its driver, from all else that can go wrong."""
    try:
        yield
    except (SQLAlchemyError, ValueError, OverflowError) as error:
        if not _is_refusal(error):
            raise
        raise RefusedError(problem_of(error)) from error


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        return isinstance(error, (DataError, IntegrityError)) or (sqlstate or "")[:2] in _REFUSALS
    return isinstance(error, (StatementError, ValueError, OverflowError))


def problem_of(error: Exception) -> str:
    """What went wrong with a database, in one line, without statements, values and secrets."""
    original = getattr(error, "orig", None) or error
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is not None and _is_refusal(error):  # whose text may quote the row
        return f"{type(original).__name__}: SQLSTATE {sqlstate}"
    lines = str(original).strip().splitlines()
    return f"{type(original).__name__}: {lines[0] if lines else ''}"


def _distinct(rows: Sequence[Row]) -> dict[Key, Row]:
    """The rows by key, in the keys' order; of exact repeats the first."""
    first = {(row["sent_at"], row["digest"]): row for row in reversed(rows)}
    return dict(sorted(first.items(), key=lambda one: one[0]))


def _newest_states(event_rows: Iterable[Row]) -> list[Row]:
    newest: dict[str, Row] = {}
    for row in sorted(event_rows, key=lambda row: (row["sent_at"], row["received_at"])):
        if row["state"] is not None:
            before = newest.get(row["job_id"], row)
            newest[row["job_id"]] = {
                "job_id": row["job_id"],
                "room_id": row["room_id"] or before["room_id"],
                "output_url": row["output_url"] or before["output_url"],
                "state": row["state"],
                "since": row["sent_at"],
                "received_at": row["received_at"],
            }
    return [newest[job_id] for job_id in sorted(newest)]
