"""Connections to SQLite or PostgreSQL, with explicit transactions, and with limits to every wait."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from receiver.database import postgresql
from receiver.database.postgresql import READ_ONLY
from receiver.settings.database_url import UrlInFile

if TYPE_CHECKING:  # the driver takes a tenth of a second to load, and is not needed for SQLite
    from psycopg import Connection as PostgreSQLConnection

DEADLINE = 15.0  # seconds for a transaction, without connecting: longer than the server's own limits
_BUSY_TIMEOUT = 5.0  # seconds to wait for another's SQLite transaction


def connect(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL that holds one connection."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return postgresql.connect(parsed, url if isinstance(url, UrlInFile) else None)
    engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT})
    event.listen(engine, "do_connect", _make_file)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_file(_dialect: Dialect, _record: object, args: tuple[str, ...], _options: object) -> None:
    """Create the file, readable by its owner alone: SQLite gives the files beside it the same permissions and owner.

    What root makes belongs to the owner of the folder that it is in, so that the receiver's own user can open it.
    """
    path = Path(args[0])
    if args[0].startswith("file:"):  # a URI, which SQLite reads itself
        return
    try:
        made = [one for one in (path, *path.absolute().parents) if not one.exists()]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if made and os.geteuid() == 0:
            owner = made[-1].absolute().parent.stat()
            for one in made:
                os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:  # reported like any other error of the database
        raise sqlite3.OperationalError(f"{path}: {error.strerror}") from error


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transaction control begins none for SELECT and DDL: leave BEGIN to _begin_sqlite.
    connection.isolation_level = None
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = full")


def _use_wal(connection: sqlite3.Connection) -> None:
    # Where two processes do this to one new file, SQLite does not wait for its timeout: try again.
    give_up_at = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A reader takes no lock, so that a long query does not keep the projector waiting.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READ_ONLY) else "BEGIN IMMEDIATE")


class Deadline:
    """Ends a transaction that a PostgreSQL server does not answer, by shutting down the socket on this side.

    The server's own timeouts, and TCP's, do not help when it is frozen: its kernel still acknowledges.
    """

    def __init__(self, engine: Engine, seconds: float = DEADLINE) -> None:
        self._seconds = seconds
        self._connections: WeakSet[PostgreSQLConnection[Any]] = WeakSet()
        if engine.dialect.name == "postgresql":
            # First: what SQLAlchemy asks of a new connection may have to be cut off too.
            event.listen(engine, "connect", self._remember, insert=True)

    @contextmanager
    def watch(self, *, while_it_answers: bool = False) -> Iterator[None]:
        """Shut the connections down if the block takes longer than the deadline.

        With `while_it_answers` it may, as long as the server answers others: then it is at work, and not frozen.
        """
        is_over, is_done = threading.Event(), threading.Event()

        def wait() -> None:
            while not is_done.wait(self._seconds):
                if not while_it_answers or (self._is_silent() and not is_done.is_set()):
                    self._cut(is_over)
                    return

        threading.Thread(target=wait, daemon=True).start()
        try:
            yield
        except SQLAlchemyError as error:
            if not is_over.is_set():
                raise
            silence = OperationalError(None, None, TimeoutError(f"no answer for {self._seconds:g} s"))
            silence.detail = list(getattr(error, "detail", ()))
            raise silence from error
        finally:
            is_done.set()

    def _remember(self, connection: PostgreSQLConnection[Any], _record: object) -> None:
        self._connections.add(connection)

    def _is_silent(self) -> bool:
        """Whether a server does not answer a new connection in time: that it takes no more is an answer."""
        import psycopg  # noqa: PLC0415 (as above)

        for info in [one.info for one in self._connections if not one.closed]:
            # Of several hosts the one that is asked.
            where = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port), "password": info.password}
            try:
                known = {name: value for name, value in where.items() if value}
                psycopg.connect(psycopg.conninfo.make_conninfo(info.dsn, **known)).close()
            except psycopg.errors.ConnectionTimeout:
                return True
            except psycopg.Error:
                continue
        return False

    def _cut(self, is_over: threading.Event) -> None:
        is_over.set()
        for connection in list(self._connections):
            if not connection.closed:
                with socket.socket(fileno=os.dup(connection.fileno())) as own:
                    own.shutdown(socket.SHUT_RDWR)
