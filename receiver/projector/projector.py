"""The way from the journal to the database: parse, insert, commit, and only then forget.

Runs in a thread of its own. Whatever fails, the journal keeps what the database has not confirmed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.exc import InterfaceError, OperationalError

from receiver.database.database import Database, Stored
from receiver.database.errors import RefusedError, problem_of
from receiver.database.insert import Row
from receiver.database.migration import SchemaError
from receiver.database.rows import quarantine_row, to_row
from receiver.delivery import Delivery, NotDurableError
from receiver.journal.journal import Journal
from receiver.metrics import EVENT_TYPES, OTHER, STATES, Metrics, known

logger = logging.getLogger(__name__)

_BATCH = 500
_LINGER = 0.1  # seconds
_NICE = 10  # so that it does not keep a processor from the callbacks
_SHORTEST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 10.0
_COUNT_STREAMS_EVERY = 5.0
_MOST_PROBLEMS = 5


class Projector:
    """Moves deliveries from `journal` to `database` until it is stopped. `grown` is set when there is something new."""

    def __init__(self, journal: Journal, database: Database, metrics: Metrics, grown: threading.Event) -> None:
        self._journal = journal
        self._database = database
        self._metrics = metrics
        self._grown = grown
        self._stopping = threading.Event()
        self._stop_at = 0.0
        self._problems: set[tuple[str, str]] = set()
        self._schema_is_right = False
        self._streams_counted_at = float("-inf")
        self._latest: dict[str, datetime] = {}  # by event type
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Drain the journal for at most `grace` seconds, then end. What is left is projected after the next start."""
        self._stop_at = time.monotonic() + grace
        self._stopping.set()
        self._grown.set()
        self._thread.join(grace + 1)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # where a sandbox forbids it, it is only slower
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux the thread's own
        pause = _SHORTEST_PAUSE
        while not self._is_over():
            try:
                moved = self.step()
            except Exception as error:  # noqa: BLE001 (whatever it is, the journal keeps the deliveries: try again)
                self._report(error)
                # Jitter, so that several receivers do not come back to a database at once.
                self._stopping.wait(pause * random.uniform(0.5, 1))  # noqa: S311 (no secret)
                pause = min(2 * pause, _LONGEST_PAUSE)
                if self._stopping.is_set():
                    return
                continue
            pause = _SHORTEST_PAUSE
            if moved:
                if moved < _BATCH:
                    # One larger batch a little later costs the disk and the interpreter less than many small ones.
                    self._stopping.wait(_LINGER)
            elif self._stopping.is_set():
                return
            else:
                self._grown.wait(_COUNT_STREAMS_EVERY)
                self._grown.clear()

    def step(self) -> int:
        """Move one batch; returns how many deliveries it was, none when the journal is empty."""
        if not self._schema_is_right:
            self._database.prepare()
            self._schema_is_right = True
        batch = self._journal.read(_BATCH)
        if batch:
            self._project([delivery for _, delivery in batch])
            self._journal.remove(batch[-1][0])
        self._count_streams()
        self._metrics.database_up.set(1)
        if self._problems:
            logger.warning("database up again")
            self._problems.clear()
        return len(batch)

    def _is_over(self) -> bool:
        return self._stopping.is_set() and time.monotonic() > self._stop_at

    def _project(self, deliveries: Sequence[Delivery]) -> None:
        rows = [to_row(delivery) for delivery in deliveries]
        try:
            self._store(rows)
        except RefusedError:
            self._database.check_schema()  # which may have been migrated, and then it is not the row's fault
            # Store each alone, so that it stands in the way of none.
            for delivery, row in zip(deliveries, rows, strict=True):
                self._store_or_quarantine(delivery, row)

    def _store(self, rows: Sequence[Row]) -> None:
        stored = self._database.store([row for row in rows if "reason" not in row], [r for r in rows if "reason" in r])
        self._count(rows, stored)

    def _store_or_quarantine(self, delivery: Delivery, row: Row) -> None:
        try:
            self._store([row])
        except RefusedError as error:
            self._metrics.projector_errors_total.labels("refused").inc()
            logger.warning("event refused by the database", extra={"problem": str(error)})
            self._store([quarantine_row(delivery, "refused")])

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

    def _count_streams(self) -> None:
        if time.monotonic() - self._streams_counted_at < _COUNT_STREAMS_EVERY:
            return
        counts = dict.fromkeys(STATES, 0)
        for state, count in self._database.stream_states():
            counts[known(state, STATES)] += count
        for state, count in counts.items():
            self._metrics.streams.labels(state).set(count)
        self._streams_counted_at = time.monotonic()

    def _report(self, error: Exception) -> None:
        reason = reason_of(error)
        self._metrics.projector_errors_total.labels(reason).inc()
        if reason == "journal":  # which the journal itself has logged
            return
        self._metrics.database_up.set(0)
        self._database.close()
        self._schema_is_right = False
        found = reason, problem_of(error)
        # An outage may change its face: it is said once of each, and not of ever more.
        if found not in self._problems and len(self._problems) < _MOST_PROBLEMS:
            message = "database still down" if self._problems else "database down"
            logger.error(message, extra={"reason": reason, "problem": found[1]})
            self._problems.add(found)


def reason_of(error: Exception) -> str:
    """The label under which a failed attempt is counted, one of `PROJECTOR_ERRORS`."""
    if isinstance(error, SchemaError):
        return "schema"
    if isinstance(error, NotDurableError):
        return "journal"
    return "connection" if isinstance(error, (OperationalError, InterfaceError)) else OTHER
