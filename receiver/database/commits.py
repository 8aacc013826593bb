"""Commits to PostgreSQL that count as done only where the server's configuration wants them: on its disk, on standbys.

A standby may be promoted at any time. What was confirmed before it was there would be lost by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event, func, select

if TYPE_CHECKING:  # the driver takes a tenth of a second to load, and is not needed for SQLite
    from psycopg import Connection as PostgreSQLConnection
    from psycopg.errors import Diagnostic

_CUT_SHORT = "cut_short"
_WAIT = "SyncRepWaitForLSN"  # PostgreSQL's function, whose name is not translated as its warning is


class NotReplicatedError(Exception):
    """A commit is on the primary, and nobody knows whether a standby has it."""


def watch_commits(engine: Engine) -> None:
    """Have `require_replicated` know of each commit whether its wait for a synchronous standby was cut short."""
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _watch)


def require_replicated(info: dict[Any, Any]) -> None:
    """Raise `NotReplicatedError` where the commit that has just returned on the connection of this `info` was cut."""
    if info.pop(_CUT_SHORT, False):
        raise NotReplicatedError(
            "a commit's wait for a synchronous standby was canceled, and only the primary may have it: try it again"
        )


def wait_for_those_before(connection: Connection) -> None:
    """Have this transaction's commit wait as those do that stored what it has found in the database.

    A commit that waits for a standby becomes visible without it where the server restarts or the wait is ended. This
    transaction would see its rows, write nothing, and wait for nothing. An empty message makes it write.
    """
    connection.execute(select(func.pg_logical_emit_message(True, "metastudio", "")))


def _watch(connection: PostgreSQLConnection[Any], record: Any) -> None:  # noqa: ANN401 (a record of SQLAlchemy's pool)
    def note(notice: Diagnostic) -> None:
        if notice.source_function == _WAIT:
            record.info[_CUT_SHORT] = True

    connection.add_notice_handler(note)
