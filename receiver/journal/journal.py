"""The write-ahead journal as the event loop sees it: deliveries that arrive together share one commit (group commit).

The file is used in one thread, and stays locked while the receiver runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from receiver.delivery import Delivery, NotDurableError
from receiver.journal.file import JournalFile
from receiver.metrics import Metrics

_LARGEST_COMMIT = 1000  # deliveries in one transaction
_MOST_WAITING_BYTES = 64 * 2**20  # of bodies in memory, before the disk took them


class JournalError(Exception):
    """The journal cannot be opened. The message names the file and the remedy."""


class Journal:
    """The journal at `path`, of at most `max_bytes`. Sets `new_deliveries` when there is something new to read."""

    def __init__(self, path: Path, max_bytes: int, metrics: Metrics, new_deliveries: threading.Event) -> None:
        metrics.journal_max_bytes.set(max_bytes)
        self._metrics = metrics
        self._new_deliveries = new_deliveries
        self._waiting: list[tuple[Delivery, asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            self._file = self._thread.submit(JournalFile, path, max_bytes, metrics).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise _cannot_open(path, error) from error

    @property
    def damaged(self) -> SimpleQueue[Path]:
        """Damaged files that were moved aside, now or in an earlier run, and are to be recovered."""
        return self._file.damaged

    def append(self, delivery: Delivery) -> asyncio.Future[None]:
        """Put a delivery on disk: done when it is there, fails with `NotDurableError` when it may not be."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._waiting_bytes + len(delivery.body) > _MOST_WAITING_BYTES:
            done.set_exception(NotDurableError("the disk does not keep up"))
            return done
        self._waiting.append((delivery, done))
        self._waiting_bytes += len(delivery.body)
        if self._idle.is_set():
            self._idle.clear()
            # After all that is ready in this turn of the loop: those requests share the commit.
            loop.call_soon(self._start_commit, loop)
        return done

    def read(self, limit: int) -> list[tuple[int, Delivery]]:
        """The oldest deliveries with their ids, at most `limit`, and fewer where they are large. Blocks."""
        return self._thread.submit(self._file.read, limit).result()

    def remove(self, last_id: int) -> None:
        """Forget the deliveries up to and including `last_id`. Blocks."""
        self._thread.submit(self._file.remove, last_id).result()

    async def check(self) -> None:
        """Write and remove a page: raises `NotDurableError` where a delivery would not be taken."""
        await asyncio.wrap_future(self._thread.submit(self._file.check))

    async def flush(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._idle.wait()

    def close(self) -> None:
        """Close the file and end the thread."""
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()

    def _start_commit(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[:_LARGEST_COMMIT], self._waiting[_LARGEST_COMMIT:]
        self._waiting_bytes = sum(len(delivery.body) for delivery, _ in self._waiting)
        committed = self._thread.submit(self._commit, [delivery for delivery, _ in batch])
        committed.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish_commit, loop, batch, done))

    def _finish_commit(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Delivery, asyncio.Future[None]]],
        committed: Future[None],
    ) -> None:
        error = committed.exception()
        for _, done in batch:
            if done.done():  # the client went away while its delivery was written
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        if self._waiting:
            self._start_commit(loop)
        else:
            self._idle.set()

    def _commit(self, deliveries: list[Delivery]) -> None:
        started = time.perf_counter()
        self._file.append(deliveries)
        self._metrics.journal_commit_duration_seconds.observe(time.perf_counter() - started)
        self._metrics.journal_batch_events.observe(len(deliveries))
        self._new_deliveries.set()


def _cannot_open(path: Path, error: Exception) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_BUSY:
        return JournalError(f"{path} is in use by another receiver: stop that one, or set `journal` to another file")
    return JournalError(f"{path} cannot be opened ({error}): set `journal` to a file on a local disk that is writable")
