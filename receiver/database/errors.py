"""What the database refuses for a row's content, told from all else that can go wrong, and errors without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

# Classes of SQLSTATE: data, integrity, CHECK OPTION, program limits (such as an index row's size), a trigger's RAISE.
_REFUSALS = frozenset({"22", "23", "44", "54", "P0"})

# What the server, a pooler or the driver says, and what to do about it: of several that fit, the first.
_REMEDIES = {
    "password authentication failed": "correct the user or the password in `database_url` or its file",
    "no password supplied": "give the password in `database_url`, or in the file that PGPASSFILE names",
    "pg_hba.conf": "allow the role to connect from this machine in the server's pg_hba.conf",
    "unsupported startup parameter": "take PGOPTIONS and the service's options away, which the pooler refuses",
    "read-only": "give all hosts in `database_url`, and see that one of them is the primary",
    "during recovery": "give all hosts in `database_url`, and see that one of them is the primary",
    "hot standby": "give all hosts in `database_url`, and see that one of them is the primary",
    "starting up": "wait: the server is starting",
    "in recovery mode": "wait: the server is starting after a crash",
    "No space left": "make room on the server's disk",
    "permission denied": "run `receiver migrate` as the tables' owner, or let the owner grant what is missing",
    "connection slots": "end other sessions, or raise max_connections",
    "too many": "end other sessions, or raise the limit of connections",
    "relation": "run `receiver migrate`",
    "does not exist": "make it on the server, or correct `database_url`",
    "resolve host": "correct the host in `database_url`, or see why its name cannot be resolved",
    "lock timeout": "see in pg_stat_activity who holds the lock",
    "statement timeout": "see in pg_stat_activity what keeps the server busy",
    "not a database": "correct `database_url`, or restore the file from a backup",
    "malformed": "restore the file from a backup, and bring over what can still be read with `receiver copy`",
    "": "see that `database_url` is right, and that the server is up and can be reached from here",
}


class RefusedError(Exception):
    """The database refuses a row for its content, so that trying again is of no use. The message shows none of it."""


@contextmanager
def refusals() -> Iterator[None]:
    """Raise `RefusedError` for what the database or its driver refuses; other errors pass."""
    try:
        yield
    except (SQLAlchemyError, ValueError, OverflowError) as error:
        if not _is_refusal(error):
            raise
        raise RefusedError(problem_of(error)) from error


def problem_of(error: Exception) -> str:
    """What went wrong with a database, and with which, in one line, without statements, values and secrets."""
    original = getattr(error, "orig", None) or error
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is not None and _is_refusal(error):  # whose text may quote the row
        return f"{type(original).__name__}: SQLSTATE {sqlstate}"
    lines = str(original).strip().splitlines() or [""]
    attempts = [line for line in lines if line.startswith("- host:")]  # of several hosts, the driver lists each
    where = "".join(f" ({one})" for one in dict.fromkeys(getattr(error, "detail", ())))
    return f"{type(original).__name__}: {' '.join(attempts) or lines[0]}{where}"


def remedy_of(error: Exception) -> str:
    """What to do about an error of `problem_of`."""
    said = str(getattr(error, "orig", None) or error)
    return next(remedy for part, remedy in _REMEDIES.items() if part in said)


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        return isinstance(error, (DataError, IntegrityError)) or (sqlstate or "")[:2] in _REFUSALS
    return isinstance(error, (StatementError, ValueError, OverflowError))
