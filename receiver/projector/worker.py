"""The projector's process: parses what the feeder sends, stores it in the database, and reports what became of it.

Whatever fails, the journal keeps what the database has not confirmed. Run as ``python -m receiver.projector.worker``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from sqlalchemy.exc import InterfaceError, OperationalError

from receiver import logs
from receiver.database.database import Database
from receiver.database.errors import problem_of, remedy_of
from receiver.database.migration import SchemaError
from receiver.database.platform import platform_findings
from receiver.journal.record import decode
from receiver.metrics import OTHER, STATES, known
from receiver.projector.channel import Channel
from receiver.projector.messages import BATCHES, ClosedError, Kind
from receiver.projector.outage import Outages
from receiver.projector.priority import stand_back
from receiver.projector.recovery import recover_all
from receiver.projector.store import Store
from receiver.projector.suspects import Suspects
from receiver.settings.database_url import UrlInFile

_SHORTEST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 2.0  # so that it stores again within seconds of a failover
_COUNT_STREAMS_EVERY = 5.0
_OBJECTS_OF_A_BATCH = 20_000
_PR_SET_PDEATHSIG = 1


class Worker:
    """Stores what comes from `channel` in the database at `database_url`.

    A job without END counts as stale when its last event is `stale_after` seconds old.
    """

    def __init__(self, channel: Channel, database_url: str, stale_after: int) -> None:
        self._channel = channel
        self._database = Database(database_url)
        self._stale_after = stale_after
        self._store = Store(self._database)
        self._batch: tuple[Kind, bytes] | None = None
        self._damaged: SimpleQueue[Path] = SimpleQueue()
        self._suspects = Suspects(self._store, channel.send)
        self._recovery = recover_all(
            self._damaged, self._suspects, lambda outcome: channel.send(outcome=outcome.to_json())
        )
        self._has_more = True  # than to wait for the feeder
        self._schema_is_right = False
        self._is_up = False
        self._connections = 0
        self._outages = Outages()
        self._streams_counted_at = float("-inf")

    def run(self) -> None:
        """Work until the feeder ends."""
        pause = _SHORTEST_PAUSE
        with contextlib.suppress(ClosedError), contextlib.closing(self._database):
            while True:
                try:
                    self._step()
                except ClosedError:
                    raise
                except Exception as error:  # noqa: BLE001 (whatever it is, the journal keeps the deliveries: try again)
                    self._report(error)
                    # Jitter, so that several receivers do not come back to a database at once.
                    self._channel.pause(pause * random.uniform(0.5, 1))  # noqa: S311 (no secret)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    pause = _SHORTEST_PAUSE

    def _step(self) -> None:
        """Store a batch, and a batch of a damaged journal after it, so that neither waits for the other."""
        if not self._schema_is_right:
            self._database.prepare()
            self._database.set_stale_after(self._stale_after)
            self._schema_is_right = True
        if self._batch is None:
            self._receive(0 if self._has_more else self._streams_counted_at + _COUNT_STREAMS_EVERY - time.monotonic())
        if self._batch is not None:
            kind, data = self._batch
            self._channel.send(begins=True)
            outcome = self._store.store(decode(data), kind)
            self._channel.send(outcome=outcome.to_json(), batch=True)
            self._batch = None
        self._count_streams()
        self._note_success()
        self._has_more = next(self._recovery)

    def _receive(self, timeout: float) -> None:
        message = self._channel.receive(max(0, timeout))
        if message is not None and message[0] in BATCHES:
            self._batch = message
        elif message is not None and message[0] is Kind.SUSPECTS:
            self._suspects.note(**json.loads(message[1]))
        elif message is not None:
            self._damaged.put(Path(json.loads(message[1])))

    def _count_streams(self) -> None:
        if time.monotonic() - self._streams_counted_at < _COUNT_STREAMS_EVERY:
            return
        counts, stale = dict.fromkeys(STATES, 0), 0
        before = datetime.fromtimestamp(max(time.time() - self._stale_after, 0), UTC)
        for state, live, left_behind in self._database.stream_states(before):
            counts[known(state, STATES)] += live
            stale += left_behind
        findings, checked_at = platform_findings(self._database)
        checked = None if checked_at is None else checked_at.timestamp()
        self._channel.send(streams=counts, streams_stale=stale, platform_jobs=findings, platform_checked=checked)
        self._streams_counted_at = time.monotonic()

    def _note_success(self) -> None:
        # Behind a new connection there may be another server, which has not got all that the one before it had.
        is_new = self._database.connections != self._connections
        if is_new or not self._is_up:
            self._channel.send(up=True, is_new=is_new)
        self._is_up = True
        self._connections = self._database.connections
        self._outages.succeeded()

    def _report(self, error: Exception) -> None:
        reason = reason_of(error)
        self._channel.send(up=False, error=reason)
        self._is_up = False
        self._database.close()
        self._schema_is_right = False
        remedy = "" if isinstance(error, SchemaError) else remedy_of(error)  # whose text names it
        self._outages.failed(reason, problem_of(error), remedy)


def reason_of(error: Exception) -> str:
    """The label under which a failed attempt is counted, one of `PROJECTOR_ERRORS`."""
    if isinstance(error, SchemaError):
        return "schema"
    return "connection" if isinstance(error, (OperationalError, InterfaceError)) else OTHER


def main() -> None:
    """Work for the process that has started this one, over the socket whose descriptor is the first argument."""
    descriptor, parent = map(int, sys.argv[1:])
    _end_with(parent)
    # Ctrl-C and systemd send these to all processes: the feeder decides when this one ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stand_back()
    os.umask(0o077)  # what it writes holds stream keys
    logs.set_up()
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(ClosedError):
        channel = Channel(connection)
        message = channel.receive()
        if message is not None:
            settings = json.loads(message[1])
            file = settings.pop("database_url_file", None)
            if file is not None:
                settings["database_url"] = UrlInFile(settings["database_url"], Path(file))
            worker = Worker(channel, **settings)
            # A batch makes thousands of objects, and all are in use until its end. Without these two a twentieth of the
            # time goes into searching them, and all that was imported, for garbage.
            gc.freeze()
            gc.set_threshold(_OBJECTS_OF_A_BATCH)
            worker.run()


def _end_with(parent: int) -> None:
    """Let the kernel end this process at once when its parent ends, however that does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


if __name__ == "__main__":
    main()
