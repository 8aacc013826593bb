"""Quarantined deliveries tried again, after an upgrade that understands more or once the clock is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from receiver.database.database import Database, RefusedError
from receiver.database.insert import Row
from receiver.database.rows import event_columns
from receiver.protocol.events import EventError, parse
from receiver.protocol.signature import StaleSignatureError

_PAGE = 100  # rows, which may be of a MiB each


class Retried(NamedTuple):
    """How many rows went to the events, and how many were left in the quarantine."""

    moved: int
    left: int


def retry(database: Database, *, stale: bool) -> Retried:
    """Move to the events what can be parsed now; rows of the reason ``stale`` only where `stale` says so."""
    moved = [_retry(database, row, stale=stale) for row in _rows(database)]
    return Retried(sum(moved), len(moved) - sum(moved))


def _retry(database: Database, row: Row, *, stale: bool) -> bool:
    if row["reason"] == StaleSignatureError.reason and not stale:
        return False
    kept = {name: row[name] for name in ("endpoint", "sent_at", "received_at", "digest")}
    try:
        database.release(row["id"], kept | event_columns(parse(row["body"]), row["body"]))
    except (EventError, RefusedError):
        return False
    return True


def _rows(database: Database) -> Iterator[Row]:
    last = 0
    while page := database.quarantined(limit=_PAGE, after=last):
        yield from page
        last = page[-1]["id"]
