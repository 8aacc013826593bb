"""The write-ahead journal as the event loop sees it: deliveries that arrive together share one commit (group commit).

The file is used in one thread, and stays locked while the receiver runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

from receiver.delivery import Delivery, NotDurableError
from receiver.journal.file import JournalFile, free_bytes
from receiver.journal.record import Record
from receiver.metrics import Metrics

_LARGEST_COMMIT = 1000  # deliveries
_LARGEST_COMMIT_BYTES = 4 * 2**20  # of bodies, unless it is one
_MOST_WAITING_BYTES = 64 * 2**20  # of bodies in memory, before the disk took them


_P = ParamSpec("_P")
_T = TypeVar("_T")


class JournalError(Exception):
    """The journal cannot be opened. The message names the file and the remedy."""


class Journal:
    """The journal at `path`, of at most `max_bytes`, that keeps for `keep` seconds what is stored.

    Sets `new_deliveries` when there is something new to read.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (the file's own, and what the event loop needs)
        self,
        path: Path,
        max_bytes: int,
        metrics: Metrics,
        new_deliveries: asyncio.Event,
        keep: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        metrics.journal_max_bytes.set(max_bytes)
        self._metrics = metrics
        self._new_deliveries = new_deliveries
        self._waiting: list[tuple[Delivery, asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            self._file = self._thread.submit(JournalFile, path, max_bytes, metrics, keep, clock).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise _cannot_open(path, error) from error
        # Read at each scrape: an idle receiver's disk may be filled by others.
        metrics.journal_disk_free_bytes.set_function(partial(free_bytes, path.parent))

    @property
    def damaged(self) -> SimpleQueue[Path]:
        """Damaged files that were moved aside, now or in an earlier run, and are to be recovered."""
        return self._file.damaged

    @property
    def last_id(self) -> int:
        """The id of the latest record."""
        return self._file.last_id

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

    async def read(self, after: int, limit: int) -> list[Record]:
        """The oldest records that wait and are behind the id `after`: of at most `limit` deliveries, or one."""
        return await self._run(self._file.read, after, limit)

    async def read_kept(self, after: int, limit: int) -> list[Record]:
        """The same of the records that are stored and kept."""
        return await self._run(self._file.read_kept, after, limit)

    async def store(self, last_id: int) -> None:
        """Note that all up to `last_id` is stored."""
        await self._run(self._file.store, last_id)

    async def remove_expired(self) -> None:
        """Remove what was kept for long enough."""
        await self._run(self._file.remove_expired)

    async def restart_keeping(self) -> None:
        """Keep all that is stored as if it had just been stored."""
        await self._run(self._file.restart_keeping)

    async def put_aside(self, delivery: Delivery) -> Path:
        """Keep a delivery beside the journal, where nothing stores it; returns where."""
        return await self._run(self._file.put_aside, delivery)

    async def check(self) -> None:
        """Write and remove a page: raises `NotDurableError` where a delivery would not be taken."""
        await self._run(self._file.check)

    async def flush(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._idle.wait()

    def close(self) -> None:
        """Close the file and end the thread."""
        self._thread.submit(self._file.close).result()
        self._thread.shutdown()

    async def _run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))

    def _start_commit(self, loop: asyncio.AbstractEventLoop) -> None:
        count = size = 0
        for delivery, _ in self._waiting[:_LARGEST_COMMIT]:
            size += len(delivery.body)
            if count and size > _LARGEST_COMMIT_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_bytes -= sum(len(delivery.body) for delivery, _ in batch)
        committed = self._thread.submit(self._commit, [delivery for delivery, _ in batch])
        committed.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish_commit, loop, batch, done))

    def _finish_commit(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Delivery, asyncio.Future[None]]],
        committed: Future[None],
    ) -> None:
        error = committed.exception()
        if error is None:
            self._new_deliveries.set()
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


def _cannot_open(path: Path, error: Exception) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_BUSY:
        return JournalError(f"{path} is in use by another receiver: stop that one, or set `journal` to another file")
    return JournalError(f"{path} cannot be opened ({error}): set `journal` to a file on a local disk that is writable")
