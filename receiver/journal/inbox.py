"""The table of version 0.1, which had a row a delivery: it is taken over when a journal is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from receiver.delivery import Delivery
from receiver.journal.record import DamagedError
from receiver.journal.table import insert, load
from receiver.protocol.signature import LAST_SECOND

_COLUMNS = "id, endpoint, received_at, sent_at, time_text, body, quarantine_reason"
SELECT_AFTER = f"SELECT {_COLUMNS} FROM inbox WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 (constants)
_LARGEST_CHUNK = 1000  # deliveries
_LARGEST_CHUNK_BYTES = 2**20


def take_over(connection: sqlite3.Connection) -> None:
    """Make records of all rows, a chunk a transaction, and drop the table; raises `DamagedError`."""
    if not exists(connection):
        return
    fill = load(connection, None)
    while True:
        connection.execute("BEGIN IMMEDIATE")
        deliveries, last = _chunk(connection)
        if not deliveries:
            connection.execute("DROP TABLE inbox")
            connection.execute("COMMIT")
            return
        # Removed first, so that a full journal has room.
        connection.execute("DELETE FROM inbox WHERE id <= ?", (last,))
        fill = insert(connection, fill, deliveries)
        connection.execute("COMMIT")


def exists(connection: sqlite3.Connection) -> bool:
    """Whether the file has the table."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'inbox'").fetchone() is not None


def from_row(row: Sequence[Any]) -> Delivery:
    """The delivery in a row whose texts are `as_text`; raises `DamagedError` where it is none that was written."""
    _, endpoint, received_at, sent_at, time_text, body, reason = row
    is_sound = (
        isinstance(endpoint, str)
        and endpoint.isprintable()
        and all(isinstance(time, float) and 0 <= time <= LAST_SECOND for time in (received_at, sent_at))
        and isinstance(time_text, bytes)
        and isinstance(body, bytes)
        and (reason is None or (isinstance(reason, str) and reason.isidentifier()))
    )
    if not is_sound:
        raise DamagedError("a row was not written like this")
    return Delivery(endpoint, received_at, sent_at, time_text, body, reason)


def as_text(raw: bytes) -> str:
    """A text of the table; bytes that are not UTF-8 become characters that are not printable."""
    return raw.decode(errors="surrogateescape")


def _chunk(connection: sqlite3.Connection) -> tuple[list[Delivery], int]:
    """The oldest deliveries, and the id of the last of them."""
    found: list[Delivery] = []
    last = size = 0
    try:
        for row in connection.execute(SELECT_AFTER, (0, _LARGEST_CHUNK)):
            if found and row[0] != last + 1:  # or all would be removed up to an id that none of them had
                raise DamagedError("a row has another's id")
            last = row[0]
            found.append(from_row(row))
            size += len(found[-1].body)
            if size >= _LARGEST_CHUNK_BYTES:
                break
    except MemoryError as error:
        raise DamagedError("a row has an impossible size") from error
    return found, last
