"""Deliveries stored in the database, each as an event or in quarantine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import select

from receiver.database.database import Database, Stored
from receiver.database.errors import RefusedError
from receiver.database.insert import Key, Row
from receiver.database.rows import quarantine_row, to_row
from receiver.database.schema import events
from receiver.delivery import Delivery
from receiver.metrics import EVENT_TYPES, STATES, known
from receiver.projector.messages import Kind
from receiver.projector.outcome import Outcome

logger = logging.getLogger(__name__)


class Store:
    """Parses deliveries, and stores them in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def store(self, deliveries: Sequence[Delivery], kind: Kind = Kind.BATCH) -> Outcome:
        """Keep all deliveries, those that the database refuses in quarantine; returns what became of them.

        What was there already is a duplicate where the batch is new, was stored by the worker that has ended where it
        is tried again, and is not counted where the batch was kept.
        """
        rows: Sequence[Row]
        if kind is Kind.BATCH_UNPARSED:
            rows = [quarantine_row(delivery, delivery.quarantine_reason or "crash") for delivery in deliveries]
        else:
            rows = [to_row(delivery) for delivery in deliveries]
        if kind is Kind.BATCH_KEPT:
            deliveries, rows = self._without_retried(deliveries, rows)
        try:
            return self._store(rows, kind)
        except RefusedError:
            self._database.check_schema()  # which may have been migrated, and then it is not the row's fault
        # Store each alone, so that it stands in the way of none.
        outcome = Outcome()
        for delivery, row in zip(deliveries, rows, strict=True):
            outcome += self._store_or_quarantine(delivery, row, kind)
        return outcome

    def _without_retried(
        self, deliveries: Sequence[Delivery], rows: Sequence[Row]
    ) -> tuple[Sequence[Delivery], Sequence[Row]]:
        """All but what would come back into quarantine after it was moved to the events."""
        keys = [_key(row) for row in rows if "reason" in row]
        if not keys:
            return deliveries, rows
        times, digests = zip(*keys, strict=True)
        query = select(events.c.sent_at, events.c.digest)
        found = self._database.read(query.where(events.c.sent_at.in_(times), events.c.digest.in_(digests)))
        moved = {_key(row) for row in found}
        left = [
            pair for pair in zip(deliveries, rows, strict=True) if "reason" not in pair[1] or _key(pair[1]) not in moved
        ]
        return [delivery for delivery, _ in left], [row for _, row in left]

    def _store_or_quarantine(self, delivery: Delivery, row: Row, kind: Kind) -> Outcome:
        try:
            return self._store([row], kind)
        except RefusedError as error:
            logger.warning("event refused by the database", extra={"problem": str(error)})
            outcome = self._store([quarantine_row(delivery, "refused")], kind)
            outcome.refused += 1
            return outcome

    def _store(self, rows: Sequence[Row], kind: Kind) -> Outcome:
        stored = self._database.store([row for row in rows if "reason" not in row], [r for r in rows if "reason" in r])
        return _count(rows, stored, kind)


def _count(rows: Sequence[Row], stored: Stored, kind: Kind) -> Outcome:
    counted = Outcome(new=len(stored.events) + len(stored.quarantine))
    if kind in (Kind.BATCH_AGAIN, Kind.BATCH_UNPARSED):
        of_reasons = {_key(row) for row in rows if "reason" in row}
        stored = Stored({_key(row) for row in rows if "reason" not in row}, of_reasons)
    for row in rows:
        outcome, keys_left = ("quarantined", stored.quarantine) if "reason" in row else ("stored", stored.events)
        key = _key(row)
        if key not in keys_left:
            outcome = "duplicate"
        keys_left.discard(key)  # of exact repeats in one batch the first is stored, the others are duplicates
        if outcome == "duplicate" and kind is Kind.BATCH_KEPT:
            continue
        event_type = known(row.get("event_type"), EVENT_TYPES)
        counted.events[row["endpoint"], event_type, outcome] += 1
        if outcome == "stored":
            counted.note_latest(event_type, row["sent_at"].timestamp())
            if row["state"] is not None:
                counted.transitions[known(row["state"], STATES)] += 1
    return counted


def _key(row: Row) -> Key:
    return row["sent_at"], row["digest"]
