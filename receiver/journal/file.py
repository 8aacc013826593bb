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
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from receiver.delivery import Delivery, NotDurableError
from receiver.journal.damaged import move_aside, move_wal, sync_directory, unrecovered, wal_of
from receiver.journal.record import INSERT, INSERT_BYTES, OLDEST, SCHEMA, SELECT, DamagedError, as_text, from_row
from receiver.metrics import Metrics

_T = TypeVar("_T")
_PAGE_BYTES = 4096
_SYNCHRONOUS = 2  # FULL: a commit is an fsync
_LARGEST_READ_BYTES = 8 * 2**20  # of bodies in one read
_RESERVED_BYTES = 16 * 2**20  # of the disk
# TOOBIG: the size of a row is damaged.
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG)

logger = logging.getLogger(__name__)


class JournalFile:
    """The file at `path`, of at most `max_bytes`; `damaged` has the files that were moved aside and not recovered yet.

    Making one raises `sqlite3.Error` and `OSError`, everything else `NotDurableError`.
    """

    def __init__(self, path: Path, max_bytes: int, metrics: Metrics) -> None:
        self._path = path
        self._max_pages = max_bytes // _PAGE_BYTES
        self._metrics = metrics
        self._connection: sqlite3.Connection | None = None
        self._problem: str | None = None
        self._read_ids = range(0)
        self.damaged: SimpleQueue[Path] = SimpleQueue()
        for one in unrecovered(path):
            self.damaged.put(one)
        self._use_file(lambda _: None)

    def append(self, deliveries: list[Delivery]) -> None:
        """Put deliveries on disk, all or none."""
        size = sum(len(delivery.body) for delivery in deliveries)
        self._transaction(lambda connection: connection.executemany(INSERT, deliveries), adds=size)

    def read(self, limit: int) -> list[tuple[int, Delivery]]:
        """The oldest deliveries with their ids, at most `limit`, and fewer where they are large."""
        found = self._attempt(lambda connection: _read(connection, limit))
        self._read_ids = range(found[0][0], found[-1][0] + 1) if found else range(0)
        return found

    def remove(self, last_id: int) -> None:
        """Forget the deliveries up to and including `last_id`, as far as they were read."""

        def remove(connection: sqlite3.Connection) -> None:
            ids = range(self._read_ids.start, min(last_id + 1, self._read_ids.stop))
            if ids and connection.execute("DELETE FROM inbox WHERE id <= ?", (ids[-1],)).rowcount != len(ids):
                raise DamagedError("other rows would be removed than were read")
            self._read_ids = range(ids.stop, self._read_ids.stop)

        if self._read_ids:  # none, where a batch was on its way to the database when the file was replaced
            self._transaction(remove, adds=None)

    def check(self) -> None:
        """Write and remove a page: fails where a delivery would not be taken."""

        def write(connection: sqlite3.Connection) -> None:
            cursor = connection.execute(INSERT_BYTES, (_PAGE_BYTES,))
            connection.execute("DELETE FROM inbox WHERE id = ?", (cursor.lastrowid,))

        self._transaction(write, adds=_PAGE_BYTES)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
            return self._use_file(work)
        except (sqlite3.Error, OSError) as error:
            if not _is_full(error):
                # After an I/O error nothing that this connection holds in memory is to be trusted: open the file anew.
                self.close()
            elif self._connection is not None and self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # then the next attempt fails, and opens the file anew
                    self._connection.execute("ROLLBACK")
            problem = "the journal or its disk is full" if _is_full(error) else f"the journal's disk fails: {error}"
            if self._problem is None:
                details = {"problem": problem, "journal": str(self._path)}
                logger.error("journal down", extra=details)  # noqa: TRY400 (the problem in one line)
            self._problem = problem
            raise NotDurableError(problem) from error

    def _use_file(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work`; where the file proves to be damaged, with the one that takes its place."""
        try:
            return work(self._connection or self._open())
        except sqlite3.Error as error:
            # The low byte of a code is the error, the others are its details.
            if not isinstance(error, DamagedError) and getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                raise
            self._move_aside(error)
            return work(self._open())

    def _move_aside(self, error: sqlite3.Error) -> None:
        # Before the connection is closed: SQLite leaves a file that has another name now as it is, and its WAL too.
        try:
            target = move_aside(self._path)
        finally:
            self.close()
        self.damaged.put(target)
        details = {"moved_to": str(target), "problem": str(error)}
        logger.error("journal damaged, moved aside", extra=details)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        existed = self._path.exists()
        if not existed:
            move_wal(self._path)
        elif self._path.stat().st_size == 0 and wal_of(self._path).exists():
            raise DamagedError("the file is empty, and SQLite would remove its WAL")
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            _set_up(connection, self._max_pages)
            if not existed:
                # SQLite syncs the WAL's directory entry, but not the file's own.
                sync_directory(self._path.parent)
            self._export(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._read_ids = range(0)  # what was read may have been another file
        return connection

    def _export(self, connection: sqlite3.Connection) -> None:
        # Ids have no gaps: only the oldest are ever removed, and a rolled back insert gives its id back.
        # Apart, because SQLite looks up a min or a max alone, and scans the table for both.
        (last,) = connection.execute("SELECT max(id) FROM inbox").fetchone()
        first, oldest = connection.execute(OLDEST).fetchone() or (None, None)
        self._metrics.journal_events.set(0 if first is None else last - first + 1)
        self._metrics.journal_bytes.set(_bytes(connection, "page_count") - _bytes(connection, "freelist_count"))
        # None, or damaged, which `read` will find.
        self._metrics.journal_oldest_timestamp_seconds.set(oldest if isinstance(oldest, float) else float("nan"))


def _set_up(connection: sqlite3.Connection, max_pages: int) -> None:
    connection.text_factory = as_text
    # EXCLUSIVE: no second process, and the WAL's index in memory.
    # Debian's SQLite would write zeros over all that is removed, for which a full disk has no space.
    for pragma, wanted in {
        "page_size": _PAGE_BYTES,
        "secure_delete": 0,
        "locking_mode": "exclusive",
        "journal_mode": "wal",
        "synchronous": _SYNCHRONOUS,
        "max_page_count": max_pages,
        "journal_size_limit": 16 * 2**20,
    }.items():
        connection.execute(f"PRAGMA {pragma} = {wanted}")
        (got,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if got != wanted and pragma != "max_page_count":  # which is never less than the file has now
            raise sqlite3.OperationalError(f"PRAGMA {pragma} is {got}, not {wanted}")
    # Bring all that the WAL holds into the file, and sync it, before anything is written behind it: after an fsync that
    # failed, Linux takes the pages for clean. What is read of them now may never have reached the disk, and what came
    # behind them in the WAL would be lost with them.
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        if not _is_full(error):
            raise
    connection.execute(SCHEMA)


def _read(connection: sqlite3.Connection, limit: int) -> list[tuple[int, Delivery]]:
    found: list[tuple[int, Delivery]] = []
    size = 0
    try:
        for row_id, *row in connection.execute(SELECT, (limit,)):
            if found and row_id != found[-1][0] + 1:  # or all would be removed up to an id that none of them had
                raise DamagedError("a row has another's id")
            found.append((row_id, from_row(row)))
            size += len(found[-1][1].body)
            if size >= _LARGEST_READ_BYTES:
                break
    except MemoryError as error:
        raise DamagedError("a row has an impossible size") from error
    return found


def _bytes(connection: sqlite3.Connection, pragma: str) -> int:
    pages: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return pages * _PAGE_BYTES


def _check_space(path: Path, adds: int, connection: sqlite3.Connection) -> None:
    """Leave so much of the disk that deliveries can still be removed: on a full disk SQLite cannot delete either."""
    disk = os.statvfs(path.parent)
    reserve = min(_RESERVED_BYTES, disk.f_blocks * disk.f_frsize // 8)
    grows = _bytes(connection, "page_count") - path.stat().st_size  # when the WAL is brought into the file
    # Twice: once in the WAL, once in the file, where room that was removed from is used again.
    if disk.f_bavail * disk.f_frsize + _bytes(connection, "freelist_count") - grows - 2 * adds < reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
