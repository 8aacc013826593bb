"""Rows for other programs: JSON, and CSV for spreadsheets. Times are ISO 8601 in UTC."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from receiver.text import escaped, printable

_FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs a text that begins so


def as_json(value: object, *, indent: int | None = 2) -> str:
    """JSON, without indent in one line. What would control a terminal is escaped, so that it may be printed on one."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent, default=_time).split("\n")
    return "\n".join(map(escaped, lines))


def as_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """CSV with a header. Nothing is left of control characters; before a text that looks like a formula comes a `'`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return file.getvalue()


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, str):
        return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)
    return value
