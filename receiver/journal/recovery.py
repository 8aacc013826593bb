"""What can be read of a damaged journal, or of any journal that no receiver uses."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from receiver.delivery import Delivery
from receiver.journal import inbox, table
from receiver.journal.damaged import wal_of
from receiver.journal.record import DamagedError, decode, from_row

_SINGLE_STEPS = 10_000  # ids that are tried one by one where nothing can be read
_NO_ID = 2**62  # larger than any


class UnreadableError(Exception):
    """Nothing of the file can be read, at least now. The message says why."""


class Readable:
    """The deliveries that can be read of a file and its WAL, which stay as they are.

    `lost` is how many rows were met so far that could not be read, or are missing between two that could. Iterating
    raises `UnreadableError`, perhaps after some deliveries.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lost = 0

    def __iter__(self) -> Iterator[Delivery]:
        with _opened(self._path) as connection:
            try:
                connection.execute("BEGIN")  # so that it stays locked against writers between two reads
                is_old = inbox.exists(connection)
                is_new = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone() is not None
            except sqlite3.Error as error:
                in_use = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                raise UnreadableError("it is in use" if in_use else str(error)) from error
            if not is_old and not is_new:
                raise UnreadableError("it is no journal")
            # One that was being taken over has both, and what was taken over is older.
            problem: UnreadableError | None = None
            if is_new:
                try:
                    yield from self._readable(connection, table.SELECT_AFTER, _in_record)
                except UnreadableError as error:
                    problem = error
            if is_old:
                yield from self._readable(connection, inbox.SELECT_AFTER, _in_inbox)
            if problem is not None:
                raise problem

    def _readable(
        self,
        connection: sqlite3.Connection,
        select: str,
        read: Callable[[Sequence[Any], int], tuple[int, list[Delivery]]],
    ) -> Iterator[Delivery]:
        at = last = failures = damaged = 0  # `last` is the id of the last row that was sound, or 0
        problem = ""
        while at < _NO_ID:
            try:
                for row in connection.execute(select, (at, -1)):
                    failures = 0
                    try:
                        row_id, deliveries = read(row, at + 1)
                    except DamagedError as error:
                        problem = str(error)
                        damaged += 1
                        at += 1
                        continue
                    at = max(at, row_id)
                    self.lost += at - last - 1 if last else damaged
                    last, damaged = at, 0
                    yield from deliveries
                break
            except (sqlite3.Error, MemoryError) as error:  # a damaged size may be larger than the memory
                problem = str(error)
                failures += 1
                at = at + 1 if failures % _SINGLE_STEPS else _beyond(connection, select, at + 1)
        self.lost += damaged
        if problem and not last:
            raise UnreadableError(problem)


def _in_record(row: Sequence[Any], next_id: int) -> tuple[int, list[Delivery]]:
    try:
        return row[0], decode(from_row(row).data)
    except DamagedError:  # which may be of the id alone
        return next_id, decode(from_row((next_id, *row[1:])).data)


def _in_inbox(row: Sequence[Any], next_id: int) -> tuple[int, list[Delivery]]:
    # Ids have no gaps, and one that is not the next is damaged. Where rows are missing after all, this falls behind,
    # and some are read twice: the database recognises them.
    return row[0] if next_id == 1 else next_id, [inbox.from_row(row)]


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing to the file, nor brings the WAL into it, as any other does when it is closed."""
    if path.stat().st_size == 0:  # SQLite would remove its WAL
        raise UnreadableError("it is empty")
    # What SQLite makes beside the file is removed, but not what is another's.
    made = [one for one in (wal_of(path), Path(f"{path}-shm")) if not one.exists()]
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    # Reading that is broken off may end with the garbage collection of any thread.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0, check_same_thread=False)
    connection.text_factory = inbox.as_text
    try:
        yield connection
    finally:
        connection.close()
        for one in made:
            one.unlink(missing_ok=True)


def _beyond(connection: sqlite3.Connection, select: str, at: int) -> int:
    """The smallest id, `at` or larger, after which the next row can be read."""
    return at + bisect_left(range(at, _NO_ID), True, key=lambda one: _is_readable(connection, select, one))


def _is_readable(connection: sqlite3.Connection, select: str, at: int) -> bool:
    try:
        connection.execute(select, (at, 1)).fetchall()
    except (sqlite3.Error, MemoryError):
        return False
    return True
