"""Inserts of many rows at once, which tell the new rows from repeats: for each database its fastest statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, LargeBinary, Select, Table, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.dml import ReturningInsert

from receiver.database.commits import wait_for_those_before

Row = dict[str, Any]
Key = tuple[datetime, bytes]  # (sent_at, digest), by which a repeat is known

_TIMES = ("sent_at", "received_at")


def distinct(rows: Sequence[Row]) -> dict[Key, Row]:
    """The rows by key, of exact repeats the first.

    In the order of the keys, so that receivers that share a database cannot deadlock.
    """
    first = {(row["sent_at"], row["digest"]): row for row in reversed(rows)}
    return dict(sorted(first.items(), key=lambda one: one[0]))


def insert_new(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    """Insert the rows whose keys are new, and return those keys. A row has the table's columns except `id`."""
    if not rows:
        return set()
    insert = _insert_sqlite if connection.dialect.name == "sqlite" else _insert_postgresql
    return insert(connection, table, rows)


def _insert_postgresql(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    found = connection.execute(_insert_json(table), {"rows": rows_as_json(list(rows.values()))})
    new = {(sent_at, digest) for sent_at, digest in found}
    if len(new) < len(rows):
        wait_for_those_before(connection)
    return new


@cache
def _insert_json(table: Table) -> ReturningInsert[Any]:
    names = [one.name for one in table.columns if one.name != "id"]
    insert = postgresql.insert(table).from_select(names, rows_from_json(table, names))
    return insert.on_conflict_do_nothing().returning(table.c.sent_at, table.c.digest)


def rows_from_json(table: Table, names: Sequence[str]) -> Select[Any]:
    """Rows with these columns of `table`, from the JSON in the one parameter `rows`: for PostgreSQL.

    Thousands of parameters take six times as long. And rows that are sent one by one are a pipeline to the driver,
    in a state to which the server does not apply ``idle_in_transaction_session_timeout``.
    """
    binary = {name for name in names if isinstance(table.c[name].type, LargeBinary)}
    columns = [column(name, Text() if name in binary else table.c[name].type) for name in names]
    parsed = func.json_to_recordset(cast(bindparam("rows", type_=Text()), postgresql.JSON))
    rows = parsed.table_valued(*columns, name="given").render_derived(with_types=True)
    return select(*(func.decode(one, "hex") if one.name in binary else one for one in rows.columns))


def rows_as_json(rows: Sequence[Row]) -> str:
    """The rows as `rows_from_json` reads them."""
    return json.dumps(rows, ensure_ascii=False, default=_as_json)


def _as_json(value: datetime | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value.isoformat()


def _insert_sqlite(connection: Connection, table: Table, rows: Mapping[Key, Row]) -> set[Key]:
    # The driver's own loop. This transaction is the only one that writes, so the new rows are those with new ids.
    # By position, because it looks up each name in each row anew.
    names = [column.name for column in table.columns if column.name not in ("id", *_TIMES)]
    others = itemgetter(*names)
    last = connection.scalar(select(func.max(table.c.id))) or 0
    inserted = connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({', '.join((*_TIMES, *names))})"  # noqa: S608 (our own names)
        f" VALUES ({', '.join('?' * (len(_TIMES) + len(names)))}) ON CONFLICT DO NOTHING",
        [(_as_sqlite_text(row["sent_at"]), _as_sqlite_text(row["received_at"]), *others(row)) for row in rows.values()],
    )
    if inserted.rowcount == len(rows):
        return set(rows)
    new = connection.execute(select(table.c.sent_at, table.c.digest).where(table.c.id > last))
    return {(sent_at, digest) for sent_at, digest in new}


def _as_sqlite_text(time: datetime) -> str:
    # As SQLAlchemy writes times, and SQLite's date functions read them.
    return time.astimezone(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")
