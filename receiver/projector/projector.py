"""The projector's thread: stores what is in the journal in the database, and removes it only once that has committed.

Whatever fails, the journal keeps what the database has not confirmed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time

from sqlalchemy.exc import InterfaceError, OperationalError

from receiver.database.database import Database
from receiver.database.errors import problem_of
from receiver.database.migration import SchemaError
from receiver.delivery import NotDurableError
from receiver.journal.journal import Journal
from receiver.metrics import OTHER, STATES, Metrics, known
from receiver.projector.recovery import recover_all
from receiver.projector.store import Store

logger = logging.getLogger(__name__)

_BATCH = 500
_LINGER = 0.1  # seconds
_NICE = 10  # so that it does not keep a processor from the callbacks
_SHORTEST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 10.0
_COUNT_STREAMS_EVERY = 5.0
_MOST_PROBLEMS = 5


class Projector:
    """Moves deliveries from `journal` to `database` until it is stopped. The journal sets `new_deliveries`."""

    def __init__(self, journal: Journal, database: Database, metrics: Metrics, new_deliveries: threading.Event) -> None:
        self._journal = journal
        self._database = database
        self._metrics = metrics
        self._new_deliveries = new_deliveries
        self._store = Store(database, metrics)
        self._recovery = recover_all(journal.damaged, self._store)
        self._stopping = threading.Event()
        self._stop_at = 0.0
        self._problems: set[tuple[str, str]] = set()
        self._schema_is_right = False
        self._streams_counted_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Drain the journal for at most `grace` seconds, then end. What is left is projected after the next start."""
        self._stop_at = time.monotonic() + grace
        self._stopping.set()
        self._new_deliveries.set()
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
                if self._stopping.wait(pause * random.uniform(0.5, 1)):  # noqa: S311 (no secret)
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _SHORTEST_PAUSE
            # In turn with the journal's batches, so that neither waits for the other to end.
            if not self._stopping.is_set() and next(self._recovery):
                continue
            if moved:
                if moved < _BATCH:
                    # One larger batch a little later costs the disk and the interpreter less than many small ones.
                    self._stopping.wait(_LINGER)
            elif self._stopping.is_set():
                return
            else:
                self._new_deliveries.wait(_COUNT_STREAMS_EVERY)
                self._new_deliveries.clear()

    def step(self) -> int:
        """Move one batch; returns how many deliveries it was, none when the journal is empty."""
        if not self._schema_is_right:
            self._database.prepare()
            self._schema_is_right = True
        batch = self._journal.read(_BATCH)
        if batch:
            self._store.store([delivery for _, delivery in batch])
            self._journal.remove(batch[-1][0])
        self._count_streams()
        self._metrics.database_up.set(1)
        if self._problems:
            logger.warning("database up again")
            self._problems.clear()
        return len(batch)

    def _is_over(self) -> bool:
        return self._stopping.is_set() and time.monotonic() > self._stop_at

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
        # An outage may bring several problems, one after the other: each is logged once, and not any number of them.
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
