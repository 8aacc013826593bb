"""The journal's tables: records, whose ids have no gaps, and two of their ids, up to which all is stored, or written.

What is stored may stay for a while: such records are *kept*, all others *wait*. Functions that write return the fill
as it is then. Each is one statement, and so a transaction of its own: SQLite gives up the interpreter's lock with each
call, and to get it back takes longer than the call where the event loop is busy.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from receiver.delivery import Delivery
from receiver.journal.record import DamagedError, Record, from_row, to_record

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY, deliveries INTEGER NOT NULL, oldest REAL NOT NULL, crc INTEGER NOT NULL,
    data BLOB NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY, stored INTEGER NOT NULL, crc INTEGER NOT NULL)",
)
SELECT_AFTER = "SELECT id, deliveries, oldest, crc, data FROM records WHERE id > ? ORDER BY id LIMIT ?"
_PAGES = "(SELECT page_count FROM pragma_page_count), (SELECT freelist_count FROM pragma_freelist_count)"
_INSERT = f"INSERT INTO records VALUES (?, ?, ?, ?, ?) RETURNING {_PAGES}"  # noqa: S608 (constants)
_INSERT_BYTES = "INSERT INTO records VALUES (?, 0, 0, 0, zeroblob(?))"
_SUMS = "SELECT count(*), sum(deliveries), sum(length(data)) FROM records WHERE id > ? AND id <= ?"
# Rows of `position`: all up to this id is stored, and at least up to this one there were records.
_STORED, _LAST = 1, 2
_LARGEST_READ_BYTES = 8 * 2**20
_PARTS = 16


class Fill(NamedTuple):
    """What the file holds: the ids from `first` to `last`, of which those up to `stored` are kept and the rest wait.

    `deliveries` and `waiting_bytes` are those that wait, `oldest` is the time of the first of them. Of the file's
    `pages`, `free_pages` are not used.
    """

    first: int
    stored: int
    last: int
    deliveries: int
    waiting_bytes: int
    kept_bytes: int
    oldest: float | None
    pages: int
    free_pages: int


def load(connection: sqlite3.Connection, known: Fill | None) -> Fill:
    """The fill of a file, which must hold all that is `known` of it from before; raises `DamagedError`."""
    # Apart, because SQLite looks up a min or a max alone, and scans the table for both.
    (first,) = connection.execute("SELECT min(id) FROM records").fetchone()
    (last,) = connection.execute("SELECT max(id) FROM records").fetchone()
    stored = _id_in(connection, _STORED)
    if first is None:
        first, last = (stored or 0) + 1, stored or 0
    if stored is None:  # damaged: all is offered to the database again
        stored = first - 1
    written = max(_id_in(connection, _LAST) or 0, known.last if known is not None else 0)
    if not first - 1 <= stored <= last or last < written:
        raise DamagedError("rows are missing")
    _, kept_bytes = _sums(connection, first - 1, stored)
    deliveries, waiting_bytes = _sums(connection, stored, last)
    oldest = _oldest(connection, stored)
    return Fill(first, stored, last, deliveries, waiting_bytes, kept_bytes, oldest, *_pages(connection))


def begin(connection: sqlite3.Connection, last: int) -> None:
    """Let a new file's ids begin behind `last`."""
    _set_position(connection, last, last)


def insert(connection: sqlite3.Connection, fill: Fill, deliveries: Sequence[Delivery]) -> Fill:
    """Add a record."""
    record = to_record(fill.last + 1, deliveries)
    ((pages, free_pages),) = connection.execute(_INSERT, record).fetchall()
    return fill._replace(
        last=record.id,
        deliveries=fill.deliveries + len(deliveries),
        waiting_bytes=fill.waiting_bytes + len(record.data),
        oldest=record.oldest if fill.oldest is None else fill.oldest,
        pages=pages,
        free_pages=free_pages,
    )


def try_insert(connection: sqlite3.Connection, fill: Fill, size: int) -> Fill:
    """Add a row of this size and remove it, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_INSERT_BYTES, (fill.last + 1, size))
    connection.execute("DELETE FROM records WHERE id = ?", (fill.last + 1,))
    connection.execute("COMMIT")
    return _with_pages(connection, fill)


def store(connection: sqlite3.Connection, fill: Fill, up_to: int) -> Fill:
    """Note that all up to an id is stored."""
    deliveries, size = _sums(connection, fill.stored, up_to)
    _set_position(connection, up_to, fill.last)
    fill = fill._replace(
        stored=up_to,
        deliveries=fill.deliveries - deliveries,
        waiting_bytes=fill.waiting_bytes - size,
        kept_bytes=fill.kept_bytes + size,
        oldest=_oldest(connection, up_to),
    )
    return _with_pages(connection, fill)


def note_last(connection: sqlite3.Connection, fill: Fill) -> None:
    """Note the id of the last record, so that it is missed where it is gone when the file is opened again.

    Not with each record, which would write a page more. After a crash the last ones are in the WAL, which has
    checksums of its own.
    """
    _set_position(connection, fill.stored, fill.last)


def remove(connection: sqlite3.Connection, fill: Fill, up_to: int) -> Fill:
    """Remove records that are kept, up to an id."""
    _, size = _sums(connection, fill.first - 1, up_to)
    connection.execute("DELETE FROM records WHERE id <= ?", (up_to,))
    return _with_pages(connection, fill._replace(first=up_to + 1, kept_bytes=fill.kept_bytes - size))


def remove_part(connection: sqlite3.Connection, fill: Fill) -> Fill:
    """Remove the oldest sixteenth of what is kept, and at least one record."""
    return remove(connection, fill, fill.first + (fill.stored - fill.first) // _PARTS)


def read(connection: sqlite3.Connection, after: int, last: int, limit: int) -> list[Record]:
    """The records behind the id `after`, none behind `last`: of at most `limit` deliveries and 8 MiB, or one."""
    found: list[Record] = []
    count = size = 0
    try:
        for row in connection.execute(SELECT_AFTER, (after, last - after)):
            record = from_row(row)
            if record.id != after + len(found) + 1:
                raise DamagedError("rows are missing")
            count += record.deliveries
            size += len(record.data)
            if found and (count > limit or size > _LARGEST_READ_BYTES):
                return found
            found.append(record)
    except MemoryError as error:
        raise DamagedError("a row has an impossible size") from error
    if len(found) != last - after:
        raise DamagedError("the last rows are missing")
    return found


def _sums(connection: sqlite3.Connection, after: int, up_to: int) -> tuple[int, int]:
    """How many deliveries and bytes the records in a range are, all of which must be there."""
    rows, deliveries, size = connection.execute(_SUMS, (after, up_to)).fetchone()
    if rows != up_to - after or not isinstance(deliveries or 0, int):
        raise DamagedError("rows are missing")
    return deliveries or 0, size or 0


def _oldest(connection: sqlite3.Connection, after: int) -> float | None:
    row = connection.execute("SELECT oldest FROM records WHERE id > ? ORDER BY id LIMIT 1", (after,)).fetchone()
    return row[0] if row and isinstance(row[0], float) else None  # damaged, which `read` will find


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    pages, free_pages = connection.execute(f"SELECT {_PAGES}").fetchone()
    return pages, free_pages


def _with_pages(connection: sqlite3.Connection, fill: Fill) -> Fill:
    pages, free_pages = _pages(connection)
    return fill._replace(pages=pages, free_pages=free_pages)


def _id_in(connection: sqlite3.Connection, row: int) -> int | None:
    """The id in a row of `position`; None where there is none, or a damaged one."""
    found = connection.execute("SELECT stored, crc FROM position WHERE one = ?", (row,)).fetchone()
    return found[0] if found and isinstance(found[0], int) and found[1] == _checksum(found[0]) else None


def _set_position(connection: sqlite3.Connection, stored: int, last: int) -> None:
    values = _STORED, stored, _checksum(stored), _LAST, last, _checksum(last)
    connection.execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?), (?, ?, ?)", values)


def _checksum(value: int) -> int:
    return zlib.crc32(struct.pack("<q", value))
