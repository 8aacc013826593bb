"""The database at a URL, SQLite or PostgreSQL: its transactions, its schema, and what receivers store and read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, event, func, select, text, update

from receiver.database.commits import require_replicated, watch_commits
from receiver.database.engine import DEADLINE, Deadline, connect
from receiver.database.errors import refusals
from receiver.database.insert import Key, Row, distinct, insert_new
from receiver.database.migration import READ_REVISION, REVISION, require_revision, revision_of, upgrade
from receiver.database.postgresql import READ_ONLY
from receiver.database.schema import events, jobs, quarantine, stale_after, streams
from receiver.database.streams import count_streams, newest_states, place_in_second, set_streams

logger = logging.getLogger(__name__)

_MIGRATION_LOCK = 0x4D53_5341  # any number that only this program uses as an advisory lock


class Stored(NamedTuple):
    """The keys of the rows that were new, by table."""

    events: set[Key]
    quarantine: set[Key]


class Database:
    """The database at `url`, an SQLAlchemy URL of SQLite or PostgreSQL.

    A PostgreSQL server that takes longer than `deadline` seconds is given up.
    """

    def __init__(self, url: str, *, deadline: float = DEADLINE) -> None:
        self._engine = connect(url)
        self._deadline = Deadline(self._engine, deadline)
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        self.connections = 0  # that were made, or that a pooler has led to another server
        self._server_started_at: datetime | None = None
        event.listen(self._engine, "connect", self._count_connection)
        watch_commits(self._engine)

    def close(self) -> None:
        """Close all connections. It can be used again: then it opens new ones."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Connection]:
        """A transaction that is cut off at the deadline. Raises `NotReplicatedError`."""
        engine = self._engine.execution_options(**{READ_ONLY: read_only})
        with self._deadline.watch(), engine.begin() as connection:
            info = connection.info
            yield connection
        require_replicated(info)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, for as long as the server answers: no other transaction waits for it."""
        engine = self._engine.execution_options(**{READ_ONLY: True})
        with self._deadline.watch(while_it_answers=True), engine.begin() as connection:
            self._lift_limits(connection)
            yield connection

    def read(self, query: Select[Any]) -> list[Row]:
        """The rows that a short query gives."""
        with self.transaction(read_only=True) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def migrate(self) -> tuple[str | None, str]:
        """Bring the schema to this program's revision; returns the revisions before and after."""
        with self._engine.begin() as connection:
            self._lift_limits(connection)  # another migration, or a large table, may take longer
            if not self.is_sqlite:  # where BEGIN IMMEDIATE is the lock
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
        """Migrate an SQLite database. Others may share a PostgreSQL, so there only `check_schema`."""
        if self.is_sqlite:
            self.migrate()
        else:
            self.check_schema()

    def check_schema(self) -> None:
        """Raise `SchemaError` unless the schema is this program's."""
        with self.transaction(read_only=True) as connection:
            require_revision(connection)

    def may_store(self) -> bool:
        """Whether the role may do what a receiver does with its tables."""
        if self.is_sqlite:
            return True
        needed = [(table.name, "INSERT") for table in (events, quarantine, jobs, streams)]
        needed += [(table.name, "UPDATE") for table in (jobs, streams, stale_after)]
        with self.transaction(read_only=True) as connection:
            return all(connection.scalar(select(func.has_table_privilege(*one))) for one in needed)

    def store(self, event_rows: Sequence[Row], quarantine_rows: Sequence[Row], *, release: int | None = None) -> Stored:
        """Store all rows in one transaction, and delete the quarantined row with the id `release`.

        Returns the keys of the rows that were new. Raises `RefusedError` where the database refuses one of the rows,
        and `SchemaError` where the schema is no longer this program's; nothing is stored then.
        """
        with refusals(), self.transaction() as connection:
            new_events = distinct(event_rows)
            stored = Stored(
                insert_new(connection, events, new_events),
                insert_new(connection, quarantine, distinct(quarantine_rows)),
            )
            # Only of new events: a repeat may come after a later state of the same second, and would undo it.
            set_streams(connection, newest_states(row for key, row in new_events.items() if key in stored.events))
            if release is not None:
                connection.execute(delete(quarantine).where(quarantine.c.id == release))
            # Last: if a migration held the locks that the rows needed, it has ended by now.
            if connection.scalar(READ_REVISION) != REVISION:
                require_revision(connection)
        return stored

    def set_stale_after(self, seconds: int) -> None:
        """Tell the view `live_jobs` after how many seconds without an event a job that has no END is stale."""
        with self.transaction() as connection:
            # Nothing is written where it is the same, as nearly always.
            connection.execute(update(stale_after).where(stale_after.c.seconds != seconds).values(seconds=seconds))

    def stream_states(self, stale_before: datetime) -> list[tuple[str, int, int]]:
        """Of each stream state, how many jobs have ended or had an event since a time, and how many are stale."""
        with self.transaction(read_only=True) as connection:
            self._note_server(connection)
            rows = connection.execute(count_streams(stale_before)).mappings()
            return [(row["state"], row["jobs"] - row["stale"], row["stale"]) for row in rows]

    def job(self, job_id: str) -> list[Row]:
        """The events of one job, in order."""
        order = (events.c.sent_at, place_in_second(events.c.state), events.c.received_at, events.c.digest)
        return self.read(select(events).where(of_job(job_id)).order_by(*order))

    def quarantined(self, *, limit: int, after: int = 0, reason: str | None = None) -> list[Row]:
        """Rows of the quarantine with an id above `after`, in the order of their ids."""
        query = select(quarantine).where(quarantine.c.id > after).order_by(quarantine.c.id).limit(limit)
        return self.read(query if reason is None else query.where(quarantine.c.reason == reason))

    def _count_connection(self, *_: object) -> None:
        self.connections += 1
        self._server_started_at = None

    def _note_server(self, connection: Connection) -> None:
        """Count a server that has taken over behind a pooler, where the connection stays."""
        if not self.is_sqlite:
            started_at = connection.scalar(select(func.pg_postmaster_start_time()))
            self.connections += self._server_started_at not in (None, started_at)
            self._server_started_at = started_at

    def _lift_limits(self, connection: Connection) -> None:
        if not self.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"))


def of_job(job_id: str) -> ColumnElement[bool]:
    """The condition that an event is of this job, which reads only the job's range: events have no index by job."""
    is_job = jobs.c.job_id == job_id
    first = select(jobs.c.first_sent_at).where(is_job).scalar_subquery()
    until = select(jobs.c.sent_until).where(is_job).scalar_subquery()
    return and_(events.c.job_id == job_id, events.c.sent_at >= first, events.c.sent_at <= until)
