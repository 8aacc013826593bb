"""Access to a database past the receiver."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Executable, create_engine, text


def sql(url: str, statement: Executable | str) -> list[Any]:
    """Run a statement past the program; returns its rows."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement) if isinstance(statement, str) else statement)
            return list(result.mappings()) if result.returns_rows else []
    finally:
        engine.dispose()
