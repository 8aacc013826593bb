"""Connections to the database, set up so that nothing waits for ever and every transaction is one."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from sqlalchemy import Connection, Dialect, Engine, create_engine, event, make_url

if TYPE_CHECKING:  # the driver takes a tenth of a second to load, and who has SQLite does without
    from psycopg import Connection as PostgreSQLConnection

_DEADLINE = 15.0  # seconds for a transaction, connecting aside; the server's own limits come first
READ_ONLY = "read_only"  # the execution option of a transaction that writes nothing
_BUSY_TIMEOUT = 5.0  # seconds to wait for another's SQLite transaction
# A connection that breaks in silence leaves its transaction open, with locks on keys that are to be written again:
# the server ends it when nothing has come for a while. To compile a query costs more than any of ours takes.
_SERVER_LIMITS = (
    "-c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s -c timezone=UTC -c jit=off"
)


def connect(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL that holds one connection."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT})
        event.listen(engine, "do_connect", _make_file)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        parsed,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=1,
        max_overflow=0,
        connect_args={"connect_timeout": 5, "target_session_attrs": "read-write", "options": _SERVER_LIMITS},
    )


def _make_file(_dialect: Dialect, _record: object, args: tuple[str, ...], _options: object) -> None:
    """Make the file that is to be connected to, for its owner alone: SQLite gives its rights to all beside it."""
    path = Path(args[0])
    if args[0].startswith("file:"):  # a URI, of which SQLite makes what it says
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:  # which is the database's trouble like any other
        raise sqlite3.OperationalError(f"{path}: {error.strerror}") from error


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transaction control begins none for SELECT and DDL: leave BEGIN to _begin_sqlite.
    connection.isolation_level = None
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = full")


def _use_wal(connection: sqlite3.Connection) -> None:
    # Two that make one new file a WAL database do not wait for each other, whatever their timeout: try again.
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
    """Cuts off what a PostgreSQL server keeps waiting.

    The server's own timeouts, and TCP's, do not help when it is frozen: its kernel still acknowledges. Shutting the
    socket down on this side ends the wait with an error.
    """

    def __init__(self, engine: Engine, seconds: float = _DEADLINE) -> None:
        self._seconds = seconds
        self._connections: WeakSet[PostgreSQLConnection[Any]] = WeakSet()
        if engine.dialect.name == "postgresql":
            event.listen(engine, "do_connect", self._connect)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """End what is done inside after so many seconds."""
        timer = threading.Timer(self._seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _connect(self, dialect: Dialect, _record: object, args: list[Any], options: dict[str, Any]) -> Any:  # noqa: ANN401
        connection = cast("PostgreSQLConnection[Any]", dialect.connect(*args, **options))
        self._connections.add(connection)
        return connection

    def _cut(self) -> None:
        for connection in list(self._connections):
            if not connection.closed:
                with socket.socket(fileno=os.dup(connection.fileno())) as own:
                    own.shutdown(socket.SHUT_RDWR)
