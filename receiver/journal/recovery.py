"""What can be read of a damaged journal, or of any journal that no receiver uses."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from receiver.delivery import Delivery
from receiver.journal.damaged import wal_of
from receiver.journal.record import SELECT_BEHIND, DamagedError, as_text, from_row

_SINGLE_STEPS = 10_000  # ids that are tried one by one where nothing can be read
_NO_ID = 2**62  # larger than any


class UnreadableError(Exception):
    """Nothing of the file can be read, at least now. The message says why."""


def read_file(path: Path) -> Iterator[Delivery]:
    """The deliveries that can be read of the file and its WAL, which stay as they are; raises `UnreadableError`."""
    with _opened(path) as connection:
        try:
            connection.execute("BEGIN")  # so that it stays locked against writers between two reads
            connection.execute(SELECT_BEHIND, (0, 0)).fetchall()
        except sqlite3.Error as error:
            in_use = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            raise UnreadableError("it is in use" if in_use else str(error)) from error
        yield from _readable(connection)


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
    connection.text_factory = as_text
    try:
        yield connection
    finally:
        connection.close()
        for one in made:
            one.unlink(missing_ok=True)


def _readable(connection: sqlite3.Connection) -> Iterator[Delivery]:
    at = failures = count = 0
    problem = ""
    while at < _NO_ID:
        try:
            for row_id, *row in connection.execute(SELECT_BEHIND, (at, -1)):
                # Ids have no gaps, and one that is not the next is damaged. Where rows are missing after all, this
                # falls behind, and reads some twice: the database recognises them.
                at = at + 1 if at else row_id
                failures = 0
                try:
                    delivery = from_row(row)
                except DamagedError as error:
                    problem = str(error)
                    continue
                count += 1
                yield delivery
            break
        except (sqlite3.Error, MemoryError) as error:  # a damaged size may be larger than the memory
            problem = str(error)
            failures += 1
            at = at + 1 if failures % _SINGLE_STEPS else _beyond(connection, at + 1)
    if problem and not count:
        raise UnreadableError(problem)


def _beyond(connection: sqlite3.Connection, at: int) -> int:
    """The smallest id, `at` or larger, after which the next row can be read."""
    return at + bisect_left(range(at, _NO_ID), True, key=lambda one: _is_readable(connection, one))


def _is_readable(connection: sqlite3.Connection, at: int) -> bool:
    try:
        connection.execute(SELECT_BEHIND, (at, 1)).fetchall()
    except (sqlite3.Error, MemoryError):
        return False
    return True
