"""Deliveries that end whatever stores them: kept in a journal of their own, which `receiver recover` can read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from receiver.delivery import Delivery, NotDurableError
from receiver.journal import table
from receiver.journal.damaged import sync_directory


def put_aside(journal: Path, delivery: Delivery) -> Path:
    """Add a delivery to `JOURNAL.aside`, and return that path; raises `NotDurableError`."""
    path = Path(f"{journal}.aside")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            for statement in table.SCHEMA:
                connection.execute(statement)
            connection.execute("BEGIN IMMEDIATE")
            table.insert(connection, table.load(connection, None), [delivery])
            connection.execute("COMMIT")
        sync_directory(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise NotDurableError(f"{path} cannot be written: {error}") from error
    return path
