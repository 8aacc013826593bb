"""The durable inbox: one SQLite file that holds each delivery from before its 200 until the database has it.

One connection, in one thread, in one process: the file stays locked while the receiver runs. Deliveries that arrive
together share one transaction, and with it one fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from receiver.delivery import Delivery, NotDurableError
from receiver.journal.record import COLUMNS, INSERT, SCHEMA, DamagedRowError, as_text, delivery_of
from receiver.journal.recovery import salvage
from receiver.metrics import Metrics

_T = TypeVar("_T")
_PAGE_BYTES = 4096
_SYNCHRONOUS = 2  # FULL: a commit is an fsync
_LARGEST_COMMIT = 1000  # deliveries in one transaction
_LARGEST_READ_BYTES = 8 * 2**20  # of bodies in one read
_MOST_WAITING_BYTES = 64 * 2**20  # of bodies in memory, before the disk took them
_RESERVED_BYTES = 16 * 2**20  # of the disk
_SELECT = f"SELECT id, {COLUMNS} FROM inbox ORDER BY id LIMIT ?"  # noqa: S608 (constants)
_OLDEST = "SELECT id, received_at FROM inbox ORDER BY id LIMIT 1"

logger = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot be opened. The message names the file and the remedy."""


class Journal:
    """The inbox at `path`, of at most `max_bytes`. Sets `grown` when there is something new to read."""

    def __init__(self, path: Path, max_bytes: int, metrics: Metrics, grown: threading.Event) -> None:
        self._path = path
        self._rescued = Path(f"{path}.rescued")
        self._aside: Path | None = None
        self._max_pages = max_bytes // _PAGE_BYTES
        metrics.journal_max_bytes.set(max_bytes)
        self._metrics = metrics
        self._grown = grown
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None
        self._waiting: list[tuple[Delivery, asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._problem: str | None = None
        self._read_ids = range(0)
        try:
            self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise _cannot_open(path, error) from error

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
        return self._run(lambda: self._read(limit))

    def remove(self, last_id: int) -> None:
        """Forget the deliveries up to and including `last_id`. Blocks."""
        self._run(lambda: self._remove(last_id))

    async def check(self) -> None:
        """Write and take back a page: raises `NotDurableError` where a delivery would not be taken."""
        await asyncio.wrap_future(self._thread.submit(self._check))

    async def flush(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._idle.wait()

    def close(self) -> None:
        """Close the file and end the thread."""
        self._run(self._close)
        self._thread.shutdown()

    # From here on: on the event loop.

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

    # From here on: in the journal's thread.

    def _run(self, function: Callable[[], _T]) -> _T:
        return self._thread.submit(function).result()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.Error as error:
            if not _is_damaged(error):
                raise
            self._move_aside(error)
            return self._connect()

    def _move_aside(self, error: sqlite3.Error) -> None:
        """Make room for a new journal with all that can still be read, and say where the damaged one is."""
        count = self._rescue()
        self._close()
        self._read_ids = range(0)  # what was read had ids of the damaged one
        self._aside = _unused(self._path)
        self._path.rename(self._aside)
        details = {"moved_to": str(self._aside), "rescued": count, "problem": str(error)}
        logger.error("journal damaged, moved aside", extra=details)

    def _take_its_place(self) -> None:
        """Where a damaged journal was moved aside, also before a crash: let its log follow, and go on with the rescued.

        The log must be gone first: SQLite would bring it into whatever has the journal's name.
        """
        log = Path(f"{self._path}-wal")
        if log.exists():
            log.rename(f"{self._aside or _unused(self._path)}-wal")
        self._aside = None
        if self._rescued.exists():
            self._rescued.rename(self._path)
            logger.warning("journal goes on with what was rescued", extra={"journal": str(self._path)})

    def _rescue(self) -> int:
        target = self._rescued
        target.unlink(missing_ok=True)
        if self._connection is None:  # it could not even be opened
            return 0
        logger.error("journal damaged, reading what can be read", extra={"journal": str(self._path)})
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return salvage(self._connection, target)
        except (sqlite3.Error, OSError) as error:
            target.unlink(missing_ok=True)
            logger.error("journal cannot be rescued", extra={"problem": str(error)})  # noqa: TRY400 (in one line)
            return 0

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        existed = self._path.exists()
        if not existed:
            self._take_its_place()
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        connection.text_factory = as_text
        try:
            # EXCLUSIVE: no second process, and the WAL's index in memory.
            # Debian's SQLite would write zeros over all that is removed, for which a full disk has no space.
            for pragma, wanted in {
                "page_size": _PAGE_BYTES,
                "secure_delete": 0,
                "locking_mode": "exclusive",
                "journal_mode": "wal",
                "synchronous": _SYNCHRONOUS,
                "max_page_count": self._max_pages,
                "journal_size_limit": 16 * 2**20,
            }.items():
                connection.execute(f"PRAGMA {pragma} = {wanted}")
                (got,) = connection.execute(f"PRAGMA {pragma}").fetchone()
                if got != wanted and pragma != "max_page_count":  # which is never less than the file has now
                    raise sqlite3.OperationalError(f"PRAGMA {pragma} is {got}, not {wanted}")  # noqa: TRY301
            _empty_log(connection)
            connection.execute(SCHEMA)
            if not existed:
                # SQLite syncs the WAL's directory entry, but not the file's own.
                _sync_directory(self._path.parent)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._export(connection)
        return connection

    def _commit(self, deliveries: list[Delivery]) -> None:
        started = time.perf_counter()
        size = sum(len(delivery.body) for delivery in deliveries)
        self._transaction(lambda connection: connection.executemany(INSERT, deliveries), adds=size)
        self._metrics.journal_commit_duration_seconds.observe(time.perf_counter() - started)
        self._metrics.journal_batch_events.observe(len(deliveries))
        self._grown.set()

    def _transaction(self, write: Callable[[sqlite3.Connection], object], *, adds: int | None) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            if adds is not None:
                _check_space(self._path, adds, connection)
            # A removal has no sync of its own (1 is NORMAL): the next commit's brings it along. What a power cut
            # brings back is recognised by the database.
            connection.execute(f"PRAGMA synchronous = {1 if adds is None else _SYNCHRONOUS}")
            connection.execute("BEGIN IMMEDIATE")
            write(connection)
            connection.execute("COMMIT")
            self._export(connection)

        self._attempt(transaction)
        if self._problem is not None:
            logger.warning("journal up again", extra={"journal": str(self._path)})
            self._problem = None

    def _attempt(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return work(self._connection or self._open())
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            problem = _explain(error)
            if self._problem is None:
                details = {"problem": problem, "journal": str(self._path)}
                logger.error("journal down", extra=details)  # noqa: TRY400 (the problem in one line)
            self._problem = problem
            raise NotDurableError(problem) from error

    def _give_up(self, error: Exception) -> None:
        connection = self._connection
        if connection is None:
            return
        if isinstance(error, sqlite3.Error) and _is_damaged(error):
            with contextlib.suppress(OSError):  # then it stays where it is, and nothing is accepted
                self._move_aside(error)
        elif _is_full(error):
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # then the next attempt fails, and opens the file anew
                    connection.execute("ROLLBACK")
        else:
            # After an I/O error nothing that this connection holds in memory is to be trusted: open the file anew.
            self._close()

    def _check(self) -> None:
        def write(connection: sqlite3.Connection) -> None:
            insert = "INSERT INTO inbox VALUES (NULL, '', 0, 0, '', zeroblob(?), NULL)"
            cursor = connection.execute(insert, (_PAGE_BYTES,))
            connection.execute("DELETE FROM inbox WHERE id = ?", (cursor.lastrowid,))

        self._transaction(write, adds=_PAGE_BYTES)

    def _read(self, limit: int) -> list[tuple[int, Delivery]]:
        def read(connection: sqlite3.Connection) -> list[tuple[int, Delivery]]:
            found: list[tuple[int, Delivery]] = []
            size = 0
            try:
                for row_id, *row in connection.execute(_SELECT, (limit,)):
                    if found and row_id != found[-1][0] + 1:
                        found.clear()  # or all would be removed up to an id that none of them had
                        raise DamagedRowError("a row has another's id")
                    delivery = delivery_of(row)
                    found.append((row_id, delivery))
                    size += len(delivery.body)
                    if size >= _LARGEST_READ_BYTES:
                        break
            except (sqlite3.Error, MemoryError) as error:
                if not found:  # else what can be read of a damaged journal goes on its way first
                    raise _as_damage(error) from error
            return found

        found = self._attempt(read)
        self._read_ids = range(found[0][0], found[-1][0] + 1) if found else range(0)
        return found

    def _remove(self, last_id: int) -> None:
        # Never more than was read of this file: a batch may have been on its way when the file was replaced.
        known = min(last_id, self._read_ids.stop - 1)
        count = known - self._read_ids.start + 1
        if count <= 0:
            return

        def remove(connection: sqlite3.Connection) -> None:
            if connection.execute("DELETE FROM inbox WHERE id <= ?", (known,)).rowcount != count:
                raise DamagedRowError("other rows would be removed than were read")

        self._transaction(remove, adds=None)
        self._read_ids = range(known + 1, self._read_ids.stop)

    def _export(self, connection: sqlite3.Connection) -> None:
        # Ids have no gaps: only the oldest are ever removed, and a rolled back insert gives its id back.
        # Apart, because SQLite looks up a min or a max alone, and scans the table for both.
        (last,) = connection.execute("SELECT max(id) FROM inbox").fetchone()
        first, oldest = connection.execute(_OLDEST).fetchone() or (None, None)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        self._metrics.journal_events.set(0 if first is None else last - first + 1)
        self._metrics.journal_bytes.set(pages * _PAGE_BYTES - _free_bytes(connection))
        # None, or damaged, which `read` will find.
        self._metrics.journal_oldest_timestamp_seconds.set(oldest if isinstance(oldest, float) else float("nan"))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _free_bytes(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return pages * _PAGE_BYTES


def _empty_log(connection: sqlite3.Connection) -> None:
    """Bring all that the WAL holds into the file, and sync it, before anything is written behind it.

    After an fsync that failed, Linux takes the pages for clean: what is read of them now may never have reached the
    disk, and what came behind them in the log would be lost with them.
    """
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        if not _is_full(error):
            raise


def _check_space(path: Path, adds: int, connection: sqlite3.Connection) -> None:
    """Leave so much of the disk that deliveries can still be removed: on a full disk SQLite cannot delete either."""
    disk = os.statvfs(path.parent)
    reserve = min(_RESERVED_BYTES, disk.f_blocks * disk.f_frsize // 8)
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    grows = pages * _PAGE_BYTES - path.stat().st_size  # when the log is brought into the file
    # Twice: once in the log, once in the file, where room that was removed from is used again.
    if disk.f_bavail * disk.f_frsize + _free_bytes(connection) - grows - 2 * adds < reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _as_damage(error: sqlite3.Error | MemoryError) -> sqlite3.Error:
    """The error; as damage, where a row's size is more than the memory, or than SQLite takes."""
    if isinstance(error, MemoryError) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_TOOBIG:
        return DamagedRowError("a row has an impossible size")
    return error


def _is_damaged(error: sqlite3.Error) -> bool:
    # The low byte is the error, the others are its details.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, DamagedRowError) or code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _unused(path: Path) -> Path:
    """A name beside `path` for a damaged journal."""
    base = f"{path}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    return next(path for n in itertools.count() if not (path := Path(f"{base}-{n}" if n else base)).exists())


def _explain(error: Exception) -> str:
    if _is_full(error):
        return "the journal or its disk is full"
    return f"the journal's disk fails: {error}"


def _cannot_open(path: Path, error: Exception) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_BUSY:
        return JournalError(f"{path} is in use by another receiver: stop that one, or set `journal` to another file")
    return JournalError(f"{path} cannot be opened ({error}): set `journal` to a file on a local disk that is writable")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
