"""The journal's table: deliveries as rows, and rows, if nothing has damaged them, as deliveries again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from receiver.delivery import Delivery
from receiver.protocol.signature import LAST_SECOND

SCHEMA = """CREATE TABLE IF NOT EXISTS inbox (
    id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, received_at REAL NOT NULL, sent_at REAL NOT NULL,
    time_text BLOB NOT NULL, body BLOB NOT NULL, quarantine_reason TEXT)"""
_COLUMNS = ", ".join(Delivery._fields)
INSERT = f"INSERT INTO inbox ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 (constants)
INSERT_BYTES = "INSERT INTO inbox VALUES (NULL, '', 0, 0, '', zeroblob(?), NULL)"  # a row to check the disk with
SELECT = f"SELECT id, {_COLUMNS} FROM inbox ORDER BY id LIMIT ?"  # noqa: S608 (constants)
SELECT_BEHIND = f"SELECT id, {_COLUMNS} FROM inbox WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 (constants)
OLDEST = "SELECT id, received_at FROM inbox ORDER BY id LIMIT 1"


class DamagedError(sqlite3.DatabaseError):
    """What was read was not written like this. SQLite has no checksums that would tell."""


def from_row(row: Sequence[Any]) -> Delivery:
    """The delivery in a row without its id, whose texts are `as_text`; raises `DamagedError`."""
    endpoint, received_at, sent_at, time_text, body, reason = row
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
