"""Many rows into a table at once, and which of them were new: the one statement that each database is quickest with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Dialect, LargeBinary, Table, func, select, text
from sqlalchemy.dialects import postgresql

Row = dict[str, Any]
Key = tuple[datetime, bytes]  # (sent_at, digest): what makes a delivery the same one

_TIMES = ("sent_at", "received_at")


def insert_new(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    """Insert the rows whose keys are not there yet, and return those keys. A row has the table's columns but `id`."""
    if not rows:
        return set()
    insert = _insert_sqlite if connection.dialect.name == "sqlite" else _insert_postgresql
    return insert(connection, table, rows)


def _insert_postgresql(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    """One parameter, whatever the number of rows: a statement with thousands of them costs six times as much."""
    columns = [column for column in table.columns if column.name != "id"]
    dialect: Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    binary = {column.name for column in columns if isinstance(column.type, LargeBinary)}
    kinds = [f"{c.name} {'text' if c.name in binary else c.type.compile(dialect)}" for c in columns]
    values = [f"decode({c.name}, 'hex')" if c.name in binary else c.name for c in columns]
    statement = text(
        f"INSERT INTO {table.name} ({', '.join(column.name for column in columns)})"  # noqa: S608 (our own names)
        f" SELECT {', '.join(values)} FROM json_to_recordset(CAST(:rows AS json)) AS given ({', '.join(kinds)})"
        " ON CONFLICT DO NOTHING RETURNING sent_at, digest"
    )
    given = json.dumps(list(rows.values()), ensure_ascii=False, default=_in_json)
    return {
        (sent_at.astimezone(UTC), bytes(digest)) for sent_at, digest in connection.execute(statement, {"rows": given})
    }


def _in_json(value: datetime | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value.isoformat()


def _insert_sqlite(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    """The driver's own loop; the transaction is the only writer, so that new rows are those with new ids."""
    names = [column.name for column in table.columns if column.name != "id"]
    last = connection.scalar(select(func.max(table.c.id))) or 0
    inserted = connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES (:{', :'.join(names)})"  # noqa: S608 (our own names)
        " ON CONFLICT DO NOTHING",
        [row | {name: _in_sqlite(row[name]) for name in _TIMES} for row in rows.values()],
    )
    if inserted.rowcount == len(rows):
        return set(rows)
    new = connection.execute(select(table.c.sent_at, table.c.digest).where(table.c.id > last))
    return {(sent_at, digest) for sent_at, digest in new}


def _in_sqlite(time: datetime) -> str:
    """As SQLAlchemy writes and SQLite's date functions read it."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
