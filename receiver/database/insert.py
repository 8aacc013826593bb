"""Many rows into a table at once, and which of them were new: the one statement that each database is quickest with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, LargeBinary, Select, Table, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.dml import ReturningInsert

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
    new = connection.execute(_new_from_json(table), {"rows": in_json(list(rows.values()))})
    return {(sent_at, digest) for sent_at, digest in new}


@cache
def _new_from_json(table: Table) -> ReturningInsert[Any]:
    names = [one.name for one in table.columns if one.name != "id"]
    insert = postgresql.insert(table).from_select(names, given(table, names))
    return insert.on_conflict_do_nothing().returning(table.c.sent_at, table.c.digest)


def given(table: Table, names: Sequence[str]) -> Select[Any]:
    """The rows, of these columns of `table`, that PostgreSQL is given as JSON in the one parameter `rows`.

    A statement with thousands of parameters costs six times as much. And many rows given one by one are a pipeline
    to the driver, which ends in a state that ``idle_in_transaction_session_timeout`` does not see.
    """
    binary = {name for name in names if isinstance(table.c[name].type, LargeBinary)}
    kinds = [column(name, Text() if name in binary else table.c[name].type) for name in names]
    parsed = func.json_to_recordset(cast(bindparam("rows", type_=Text()), postgresql.JSON))
    rows = parsed.table_valued(*kinds, name="given").render_derived(with_types=True)
    return select(*(func.decode(one, "hex") if one.name in binary else one for one in rows.columns))


def in_json(rows: Sequence[Row]) -> str:
    """The rows as `given` reads them."""
    return json.dumps(rows, ensure_ascii=False, default=_in_json)


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
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
