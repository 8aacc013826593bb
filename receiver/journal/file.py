"""The journal's file: a SQLite database in WAL mode, with one connection, used by one thread.

A damaged file is moved aside, and a new one takes its place at once. After any other failure the file is opened anew
when it is used next. All methods block.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from receiver.delivery import Delivery, NotDurableError
from receiver.journal import inbox, table
from receiver.journal.aside import put_aside
from receiver.journal.damaged import move_aside, move_wal, sync_directory, unrecovered, wal_of
from receiver.journal.record import DamagedError, Record
from receiver.journal.table import SCHEMA, Fill
from receiver.journal.wal import is_damaged
from receiver.metrics import Metrics

_T = TypeVar("_T")
_PAGE_BYTES = 4096
_SYNCHRONOUS = 2  # FULL: a commit is an fsync
_RESERVED_BYTES = 16 * 2**20  # of the disk
_LOOK_AT_SPACE_EVERY = 0.1  # seconds, while there is much of it
_LARGEST_CHECK_BYTES = 64 * 2**20  # of a file that is checked as a whole when it is opened
_REMOVALS = 20  # in the time that records are kept
# TOOBIG: the size of a row is damaged.
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG)

logger = logging.getLogger(__name__)


class JournalFile:
    """The file at `path`, of at most `max_bytes`; `damaged` has the files that were moved aside and not recovered yet.

    What is stored is kept for `keep` seconds. Making one raises `sqlite3.Error` and `OSError`, but not for want of
    room; everything else raises `NotDurableError`.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        metrics: Metrics,
        keep: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._max_pages = max_bytes // _PAGE_BYTES
        self._metrics = metrics
        self._keep = keep
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._problem: str | None = None
        self._synchronous = _SYNCHRONOUS
        self._spare_bytes = 0  # that can be written before the disk is looked at again
        self._space_seen_at = 0.0
        self._known: Fill | None = None  # of the file that is in use, which may have to be opened anew
        self.last_id = 0  # in any file
        self._stored_by: deque[tuple[float, int]] = deque()  # times, and the ids up to which all was stored by then
        self.damaged: SimpleQueue[Path] = SimpleQueue()
        for one in unrecovered(path):
            self.damaged.put(one)
        try:
            self._use_file(lambda _, fill: self._restart_keeping(fill))
        except (sqlite3.Error, OSError) as error:
            if not _is_full(error):
                raise
            self._note_failure(error)  # it is opened when there is room again

    def append(self, deliveries: list[Delivery]) -> None:
        """Put deliveries on disk, all or none."""
        size = sum(len(delivery.body) for delivery in deliveries)
        self._transaction(lambda connection, fill: table.insert(connection, fill, deliveries), adds=size)

    def read(self, after: int, limit: int) -> list[Record]:
        """The oldest records that wait and are behind the id `after`: of at most `limit` deliveries, or one."""
        return self._attempt(lambda connection, fill: table.read(connection, max(after, fill.stored), fill.last, limit))

    def read_kept(self, after: int, limit: int) -> list[Record]:
        """The same of the records that are kept."""
        return self._attempt(
            lambda connection, fill: table.read(connection, max(after, fill.first - 1), fill.stored, limit)
        )

    def store(self, last_id: int) -> None:
        """Note that all up to `last_id` is stored. It stays for as long as it is to be kept."""

        def store(connection: sqlite3.Connection, fill: Fill) -> Fill:
            if last_id > fill.stored:  # else the file was replaced while the batch was on its way to the database
                fill = table.store(connection, fill, last_id)
            return fill if self._keep else table.remove(connection, fill, fill.stored)

        self._transaction(store, adds=None)

    def remove_expired(self) -> None:
        """Remove what has been kept for long enough."""
        now = self._clock()
        if self._known and (not self._stored_by or now >= self._stored_by[-1][0] + self._keep / _REMOVALS):
            self._stored_by.append((now, self._known.stored))
        up_to = 0
        while self._stored_by and now >= self._stored_by[0][0] + self._keep:
            up_to = self._stored_by.popleft()[1]
        if self._known and up_to >= self._known.first:
            self._transaction(
                lambda connection, fill: table.remove(connection, fill, min(up_to, fill.stored)), adds=None
            )

    def restart_keeping(self) -> None:
        """Keep all that is stored as if it had just been stored."""
        self._attempt(lambda _, fill: self._restart_keeping(fill))

    def put_aside(self, delivery: Delivery) -> Path:
        """Keep a delivery beside the file; returns where."""
        return put_aside(self._path, delivery)

    def check(self) -> None:
        """Write and remove a page: fails where a delivery would not be taken."""
        self._spare_bytes = 0
        self._transaction(lambda connection, fill: table.try_insert(connection, fill, _PAGE_BYTES), adds=_PAGE_BYTES)

    def close(self) -> None:
        """Close the file in order."""
        if self._connection is not None and self._known is not None:
            with contextlib.suppress(sqlite3.Error):
                table.note_last(self._connection, self._known)
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _restart_keeping(self, fill: Fill) -> None:
        self._stored_by = deque([(self._clock(), fill.stored)])

    def _transaction(self, write: Callable[[sqlite3.Connection, Fill], Fill], *, adds: int | None) -> None:
        def transaction(connection: sqlite3.Connection, fill: Fill) -> None:
            while True:
                try:
                    if adds is not None:
                        self._check_space(adds, fill)
                    self._write(connection, fill, write, synchronous=_SYNCHRONOUS if adds is not None else 1)
                except (sqlite3.Error, OSError) as error:
                    # What is kept is not to cost a delivery that comes now.
                    if adds is None or not _is_full(error) or fill.first > fill.stored:
                        raise
                    _roll_back(connection)
                    fill = self._write(connection, fill, table.remove_part, synchronous=1)
                else:
                    return

        self._attempt(transaction)
        if self._problem is not None:
            logger.warning("journal up again", extra={"journal": str(self._path)})
            self._problem = None

    def _write(
        self,
        connection: sqlite3.Connection,
        fill: Fill,
        write: Callable[[sqlite3.Connection, Fill], Fill],
        *,
        synchronous: int,
    ) -> Fill:
        # What is said of stored deliveries has no sync of its own (1 is NORMAL): the next commit's brings it along.
        # What a power cut brings back is recognised by the database.
        if self._synchronous != synchronous:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        fill = write(connection, fill)
        self._note(fill)
        return fill

    def _check_space(self, adds: int, fill: Fill) -> None:
        """Leave so much of the disk that deliveries can still be removed: on a full disk SQLite cannot delete either.

        Where there is room for much more, the disk is not looked at each time.
        """
        # Twice: once in the WAL, once in the file, where room that was removed from is used again.
        self._spare_bytes -= 2 * adds
        now = time.monotonic()
        if self._spare_bytes > 0 and now < self._space_seen_at + _LOOK_AT_SPACE_EVERY:
            return
        self._spare_bytes = 0
        disk = os.statvfs(self._path.parent)
        reserve = min(_RESERVED_BYTES, disk.f_blocks * disk.f_frsize // 8)
        grows = fill.pages * _PAGE_BYTES - self._path.stat().st_size  # when the WAL is brought into the file
        left = disk.f_bavail * disk.f_frsize + fill.free_pages * _PAGE_BYTES - grows - 2 * adds - reserve
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._spare_bytes, self._space_seen_at = left // 2, now

    def _attempt(self, work: Callable[[sqlite3.Connection, Fill], _T]) -> _T:
        try:
            return self._use_file(work)
        except (sqlite3.Error, OSError) as error:
            raise NotDurableError(self._note_failure(error)) from error

    def _note_failure(self, error: Exception) -> str:
        """Leave the file fit for the next use, and log the first failure of several; returns the problem."""
        if not _is_full(error):
            # After an I/O error nothing that this connection holds in memory is to be trusted: open the file anew.
            self._close()
        elif self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # then the next attempt fails, and opens the file anew
                _roll_back(self._connection)
        problem = "the journal or its disk is full" if _is_full(error) else f"the journal's disk fails: {error}"
        if self._problem is None:
            logger.error("journal down", extra={"problem": problem, "journal": str(self._path)})
        self._problem = problem
        return problem

    def _use_file(self, work: Callable[[sqlite3.Connection, Fill], _T]) -> _T:
        """Do `work`; where the file proves to be damaged, with the one that takes its place."""
        try:
            return work(*self._opened())
        except sqlite3.Error as error:
            # The low byte of a code is the error, the others are its details.
            if not isinstance(error, DamagedError) and getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                raise
            self._move_aside(error)
            return work(*self._opened())

    def _move_aside(self, error: sqlite3.Error) -> None:
        # Before the connection is closed: SQLite leaves a file that has another name now as it is, and its WAL too.
        try:
            target = move_aside(self._path)
        finally:
            self._close()
        self._known = None
        self.damaged.put(target)
        details = {"moved_to": str(target), "problem": str(error)}
        logger.error("journal damaged, moved aside", extra=details)

    def _opened(self) -> tuple[sqlite3.Connection, Fill]:
        if self._connection is None or self._known is None:
            self._connection, fill = self._open()
            self._synchronous, self._spare_bytes = _SYNCHRONOUS, 0
            self._note(fill)
            return self._connection, fill
        return self._connection, self._known

    def _open(self) -> tuple[sqlite3.Connection, Fill]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        existed = self._path.exists()
        if not existed:
            move_wal(self._path)
        elif self._path.stat().st_size == 0 and wal_of(self._path).exists():
            raise DamagedError("the file is empty, and SQLite would remove its WAL")
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            _set_up(connection, self._path, self._max_pages)
            if not existed:
                # Behind those of the file before it, so that a batch that is on its way is never taken for another.
                table.begin(connection, self.last_id)
                # SQLite syncs the WAL's directory entry, but not the file's own.
                sync_directory(self._path.parent)
            inbox.take_over(connection)
            return connection, table.load(connection, self._known)
        except BaseException:
            connection.close()
            raise

    def _note(self, fill: Fill) -> None:
        self._known, self.last_id = fill, fill.last
        used = (fill.pages - fill.free_pages) * _PAGE_BYTES
        if fill.kept_bytes:  # the part that waits
            used = used * fill.waiting_bytes // (fill.waiting_bytes + fill.kept_bytes)
        self._metrics.journal_events.set(fill.deliveries)
        self._metrics.journal_bytes.set(used)
        self._metrics.journal_oldest_timestamp_seconds.set(float("nan") if fill.oldest is None else fill.oldest)


def _set_up(connection: sqlite3.Connection, path: Path, max_pages: int) -> None:
    connection.text_factory = inbox.as_text
    # EXCLUSIVE: no second process, and the WAL's index in memory.
    # Debian's SQLite would write zeros over all that is removed, for which a full disk has no space.
    for pragma, wanted in {
        "page_size": _PAGE_BYTES,
        "secure_delete": 0,
        "locking_mode": "exclusive",
        "journal_mode": "wal",
        "synchronous": _SYNCHRONOUS,
        "journal_size_limit": 16 * 2**20,
    }.items():
        connection.execute(f"PRAGMA {pragma} = {wanted}")
        (got,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if got != wanted:
            raise sqlite3.OperationalError(f"PRAGMA {pragma} is {got}, not {wanted}")
    # Now that no other process writes to it.
    if wal_of(path).exists() and is_damaged(wal_of(path).read_bytes()):
        raise DamagedError("the WAL is damaged")
    # Bring all that the WAL holds into the file, and sync it, before anything is written behind it: after an fsync that
    # failed, Linux takes the pages for clean. What is read of them now may never have reached the disk, and what came
    # behind them in the WAL would be lost with them.
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        if not _is_full(error):
            raise
    if path.stat().st_size <= _LARGEST_CHECK_BYTES:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedError(found)
    for statement in SCHEMA:
        connection.execute(statement)
    # Only now: a full journal that has no such tables yet has no room for them. It is never less than the file has.
    connection.execute(f"PRAGMA max_page_count = {max_pages}")


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder for users other than root."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
