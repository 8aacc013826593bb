"""What can still be read of a damaged journal, brought into a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

_AT_ONCE = 50  # rows, which may be of a MiB each


def salvage(damaged: sqlite3.Connection, target: Path, schema: str, columns: str) -> int:
    """Write the rows of `damaged` that can be read to a new journal at `target`; returns how many there were."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.execute(schema)
        connection.execute("BEGIN")
        marks = ", ".join("?" for _ in columns.split(","))
        insert = f"INSERT INTO inbox ({columns}) VALUES ({marks})"  # noqa: S608 (our own names)
        written = connection.executemany(insert, _readable(damaged, columns)).rowcount
        connection.execute("COMMIT")
    return max(written, 0)


def _readable(damaged: sqlite3.Connection, columns: str) -> Iterator[tuple[Any, ...]]:
    select = f"SELECT id, {columns} FROM inbox WHERE id"  # noqa: S608 (our own names)
    last = _largest_id(damaged)
    at = 0
    while True:
        try:
            rows = damaged.execute(f"{select} > ? ORDER BY id LIMIT {_AT_ONCE}", (at,)).fetchall()
        except sqlite3.Error:
            # The damage is among the next ones: try each. Ids have no gaps.
            ids = range(at + 1, at + 1 + _AT_ONCE)
            rows = [row for one in ids for row in _one(damaged, f"{select} = ?", one)]
            at = ids[-1]
        else:
            if not rows:
                return
            at = rows[-1][0]
        yield from (row[1:] for row in rows)
        if at >= last:
            return


def _one(damaged: sqlite3.Connection, select: str, one: int) -> list[tuple[Any, ...]]:
    try:
        return damaged.execute(select, (one,)).fetchall()
    except sqlite3.Error:
        return []


def _largest_id(damaged: sqlite3.Connection) -> int:
    try:
        found: int | None = damaged.execute("SELECT max(id) FROM inbox").fetchone()[0]
    except sqlite3.Error:
        return 0
    return found or 0
