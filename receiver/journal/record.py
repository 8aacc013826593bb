"""The journal's table: a delivery as a row and, if nothing has damaged it, the row as a delivery again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from receiver.delivery import Delivery
from receiver.protocol.signature import LAST_SECOND

SCHEMA = """CREATE TABLE IF NOT EXISTS inbox (
    id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, received_at REAL NOT NULL, sent_at REAL NOT NULL,
    time_text BLOB NOT NULL, body BLOB NOT NULL, quarantine_reason TEXT)"""
COLUMNS = ", ".join(Delivery._fields)
INSERT = f"INSERT INTO inbox ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 (constants)


class DamagedRowError(sqlite3.DatabaseError):
    """A row can be read, and is none that was written. SQLite has no checksums that would tell."""


def delivery_of(row: Sequence[Any]) -> Delivery:
    """The delivery in the `COLUMNS` of a row, whose texts are `as_text`; raises `DamagedRowError`."""
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
        raise DamagedRowError("a row is none that was written")
    return Delivery(endpoint, received_at, sent_at, time_text, body, reason)


def as_text(raw: bytes) -> str:
    """A text of the table, in which what is not UTF-8 is nothing printable."""
    return raw.decode(errors="surrogateescape")
