"""Deliveries stored in the database, each as an event or in quarantine, and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from receiver.database.database import Database, Stored
from receiver.database.errors import RefusedError
from receiver.database.insert import Row
from receiver.database.rows import quarantine_row, to_row
from receiver.delivery import Delivery
from receiver.metrics import EVENT_TYPES, STATES, Metrics, known

logger = logging.getLogger(__name__)


class Store:
    """Parses deliveries, stores them in `database`, and counts in `metrics` what became of them."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._latest: dict[str, datetime] = {}  # by event type

    def store(self, deliveries: Sequence[Delivery]) -> int:
        """Keep all deliveries, those that the database refuses in quarantine; returns how many were not there yet."""
        rows = [to_row(delivery) for delivery in deliveries]
        try:
            return self._store(rows)
        except RefusedError:
            self._database.check_schema()  # which may have been migrated, and then it is not the row's fault
            # Store each alone, so that it stands in the way of none.
            return sum(map(self._store_or_quarantine, deliveries, rows))

    def _store_or_quarantine(self, delivery: Delivery, row: Row) -> int:
        try:
            return self._store([row])
        except RefusedError as error:
            self._metrics.projector_errors_total.labels("refused").inc()
            logger.warning("event refused by the database", extra={"problem": str(error)})
            return self._store([quarantine_row(delivery, "refused")])

    def _store(self, rows: Sequence[Row]) -> int:
        stored = self._database.store([row for row in rows if "reason" not in row], [r for r in rows if "reason" in r])
        new = len(stored.events) + len(stored.quarantine)
        self._count(rows, stored)
        return new

    def _count(self, rows: Sequence[Row], stored: Stored) -> None:
        events: Counter[tuple[str, str, str]] = Counter()
        transitions: Counter[str] = Counter()
        for row in rows:
            outcome, keys = ("quarantined", stored.quarantine) if "reason" in row else ("stored", stored.events)
            key = (row["sent_at"], row["digest"])
            if key not in keys:
                outcome = "duplicate"
            keys.discard(key)  # of exact repeats in one batch the first is stored, the others are duplicates
            event_type = known(row.get("event_type"), EVENT_TYPES)
            events[row["endpoint"], event_type, outcome] += 1
            if outcome == "stored":
                self._latest[event_type] = max(self._latest.get(event_type, row["sent_at"]), row["sent_at"])
                if row["state"] is not None:
                    transitions[known(row["state"], STATES)] += 1
        for labels, count in events.items():
            self._metrics.events_total.labels(*labels).inc(count)
        for state, count in transitions.items():
            self._metrics.stream_transitions_total.labels(state).inc(count)
        for event_type, latest in self._latest.items():
            self._metrics.last_event_timestamp_seconds.labels(event_type).set(latest.timestamp())
