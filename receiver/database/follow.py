"""Events as they are stored, each once, in the order of their ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, column, func, select, table, text

from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.schema import PARAGRAPH, PRODUCT, UTCDateTime

_OF_EACH_TYPE = ("id", "endpoint", "event_type", "room_id", "job_id", "sent_at", "received_at")
SHOWN = (*_OF_EACH_TYPE, *PARAGRAPH, "output_url", "state", "reply_id", *PRODUCT)

# The view of all events without stream key and body.
ordered_events = table(
    "ordered_events",
    column("digest"),
    *(column(name, UTCDateTime if name.endswith("_at") else None) for name in SHOWN),
)
_PAGE = 1000  # rows
# Ids below the newest from which transactions may be under way when following begins, and, on SQLite, which may be
# given again after a deletion: far more than a receiver stores in one.
_BEFORE = 10_000
_NONE = (0, b"")
# Below which number all transactions are over, and a new number, which is above those of all that are under way. (A
# snapshot's xmax is not: it is above those that are over.)
_TRANSACTIONS = text("SELECT txid_snapshot_xmin(txid_current_snapshot()), txid_current()")


class _Mark(NamedTuple):
    """Ids up to `id` were given to transactions with numbers below `transaction`."""

    id: int
    transaction: int


class Follower:
    """Gives the events that are stored from now on, by asking again and again.

    An event's id is given before it is committed, and receivers that share a database commit in any order. So ids are
    read again, and those that were given before are left out, until all transactions that had taken them are over.

    SQLite commits in order, but gives the ids of the newest rows again when these are deleted. So where the newest
    event of the last call is not there any more, ids below it are read again.
    """

    def __init__(self, database: Database, *, job_id: str | None = None) -> None:
        self._database = database
        self._of_job = [] if job_id is None else [ordered_events.c.job_id == job_id]
        self._marks = deque[_Mark]()
        self._given = set[tuple[int, bytes]]()  # with the digest, by which an id that is given again is known
        with database.transaction(read_only=True) as connection:
            self._newest = _newest(connection)
        self._above = max(self._newest[0] - _BEFORE, 0)
        for _ in self.new():
            pass

    def new(self) -> Iterator[list[Row]]:
        """The events that were stored since the last call, in pages.

        Where it raises an error, what it has not given yet is given by the next call.
        """
        is_sqlite = self._database.is_sqlite
        with self._database.transaction(read_only=True) as connection:
            newest = _newest(connection)
            over, number = (0, 0) if is_sqlite else connection.execute(_TRANSACTIONS).one()
            if is_sqlite and not _is_there(connection, self._newest):
                self._above = min(self._above, self._newest[0] - _BEFORE)
        # Ids that were there at the last call: whoever took them has got a transaction's number by now.
        self._marks.append(_Mark(self._newest[0], number))
        self._newest = newest
        above = min(self._above, newest[0])  # the newest events may have been deleted
        while rows := self._page(above):
            above = rows[-1]["id"]
            new = [row for row in rows if _key(row) not in self._given]
            self._given.update(map(_key, new))
            yield new
        while self._marks and self._marks[0].transaction <= over:
            self._above = self._marks.popleft().id
        self._above = min(self._above, newest[0])
        forgotten = self._above - _BEFORE if is_sqlite else self._above
        self._given = {key for key in self._given if key[0] > forgotten}

    def _page(self, above: int) -> list[Row]:
        query = select(ordered_events).where(ordered_events.c.id > above, *self._of_job)
        return self._database.read(query.order_by(ordered_events.c.id).limit(_PAGE))


def _newest(connection: Connection) -> tuple[int, bytes]:
    highest = select(func.max(ordered_events.c.id)).scalar_subquery()
    query = select(ordered_events.c.id, ordered_events.c.digest).where(ordered_events.c.id == highest)
    row = connection.execute(query).one_or_none()
    return _NONE if row is None else (row.id, row.digest)


def _is_there(connection: Connection, key: tuple[int, bytes]) -> bool:
    query = select(ordered_events.c.digest).where(ordered_events.c.id == key[0])
    return key == _NONE or connection.scalar(query) == key[1]


def _key(row: Row) -> tuple[int, bytes]:
    return row["id"], row["digest"]
