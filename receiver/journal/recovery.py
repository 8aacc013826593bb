"""What can still be read of a damaged journal, brought into a new one."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from receiver.delivery import Delivery
from receiver.journal.record import COLUMNS, INSERT, SCHEMA, DamagedRowError, delivery_of

_PATIENCE = 10_000  # ids that are tried one by one where nothing can be read
_NO_ID = 2**62  # larger than any
_SELECT = f"SELECT id, {COLUMNS} FROM inbox WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 (constants)


def salvage(damaged: sqlite3.Connection, target: Path) -> int:
    """Write the deliveries of `damaged` that can be read to a new journal at `target`; returns how many there were."""
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.execute(SCHEMA)
        connection.execute("BEGIN")
        written = connection.executemany(INSERT, _readable(damaged)).rowcount
        connection.execute("COMMIT")
    return max(written, 0)


def _readable(damaged: sqlite3.Connection) -> Iterator[Delivery]:
    at = tried = 0
    while at < _NO_ID:
        try:
            for row_id, *row in damaged.execute(_SELECT, (at, -1)):
                # Ids have no gaps, and one that is not the next is damaged. Where rows are missing after all, this
                # falls behind, and reads some twice: the database recognises them.
                at = at + 1 if at else row_id
                tried = 0
                try:
                    delivery = delivery_of(row)
                except DamagedRowError:
                    continue
                yield delivery
        except (sqlite3.Error, MemoryError):  # whose size is damaged may be larger than the memory
            tried += 1
            at = at + 1 if tried % _PATIENCE else _beyond(damaged, at + 1)
        else:
            return


def _beyond(damaged: sqlite3.Connection, at: int) -> int:
    """The smallest id, `at` or larger, behind which there is no damage at once."""
    return at + bisect_left(range(at, _NO_ID), True, key=lambda one: _is_readable(damaged, one))


def _is_readable(damaged: sqlite3.Connection, at: int) -> bool:
    try:
        damaged.execute(_SELECT, (at, 1)).fetchall()
    except (sqlite3.Error, MemoryError):
        return False
    return True
