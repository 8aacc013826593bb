"""Tries quarantined deliveries again, after an upgrade that understands more, or once the clock is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from receiver.database.database import Database
from receiver.database.errors import RefusedError
from receiver.database.insert import Row
from receiver.database.rows import delivery_columns, event_columns
from receiver.protocol.events import EventError, parse
from receiver.protocol.signature import StaleSignatureError

_BATCH = 100  # rows, which may be of a MiB each


class Retried(NamedTuple):
    """How many rows were moved to the events, and how many were left in the quarantine."""

    moved: int
    left: int


def retry(database: Database, *, stale: bool) -> Retried:
    """Move to the events what can be parsed now; rows with the reason ``stale`` only where `stale` is true."""
    moved = [_retry(database, row, stale=stale) for row in _rows(database)]
    return Retried(sum(moved), len(moved) - sum(moved))


def _retry(database: Database, row: Row, *, stale: bool) -> bool:
    if row["reason"] == StaleSignatureError.reason and not stale:
        return False
    try:
        event_row = delivery_columns(row) | event_columns(parse(row["body"]), row["body"])
        database.store([event_row], [], release=row["id"])
    except (EventError, RefusedError):
        return False
    return True


def _rows(database: Database) -> Iterator[Row]:
    last = 0
    while rows := database.quarantined(limit=_BATCH, after=last):
        yield from rows
        last = rows[-1]["id"]
