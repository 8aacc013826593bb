"""What the database refuses for a row's content, told from all else that can go wrong, and errors without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

# Classes of SQLSTATE: data, integrity, CHECK OPTION, program limits (such as an index row's size), a trigger's RAISE.
_REFUSALS = frozenset({"22", "23", "44", "54", "P0"})


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
    """What went wrong with a database, in one line, without statements, values and secrets."""
    original = getattr(error, "orig", None) or error
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is not None and _is_refusal(error):  # whose text may quote the row
        return f"{type(original).__name__}: SQLSTATE {sqlstate}"
    lines = str(original).strip().splitlines()
    return f"{type(original).__name__}: {lines[0] if lines else ''}"


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        return isinstance(error, (DataError, IntegrityError)) or (sqlstate or "")[:2] in _REFUSALS
    return isinstance(error, (StatementError, ValueError, OverflowError))
