"""The current state of each job's stream: that of the last event in the order of the job's events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, exists, func, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from receiver.database.insert import Row, rows_as_json, rows_from_json
from receiver.database.schema import events, jobs, streams
from receiver.protocol.events import PLACES_IN_SECOND, StreamState

_RANGE_AHEAD = timedelta(minutes=10)  # how far the trigger note_jobs widens a job's range beyond its latest event
_KEPT = ("room_id", "output_url")  # where an event leaves these out, what was known before stays


def place_in_second(state: ColumnElement[str | None]) -> ColumnElement[int]:
    """Where an event with this state stands among those of its job that were sent at the same time."""
    return case(PLACES_IN_SECOND, value=state, else_=1)


def _order(row: Row) -> tuple[Any, ...]:
    return row["sent_at"], PLACES_IN_SECOND.get(row["state"], 1), row["received_at"], row["digest"]


def newest_states(event_rows: Iterable[Row]) -> list[Row]:
    """The rows of `streams` that these events make, in the order of the jobs' ids."""
    newest: dict[str, Row] = {}
    for row in sorted(event_rows, key=_order):
        if row["state"] is not None:
            before = newest.get(row["job_id"], row)
            kept = {name: row[name] or before[name] for name in _KEPT}
            changed = {name: row[name] for name in ("job_id", "state", "received_at")}
            newest[row["job_id"]] = kept | changed | {"since": row["sent_at"]}
    return [newest[job_id] for job_id in sorted(newest)]


def set_streams(connection: Connection, rows: Sequence[Row]) -> None:
    """Set the states of jobs, given in the order of their ids, unless those that are stored are newer.

    One order for all receivers that share a database, so that they cannot deadlock.
    """
    if not rows:
        return
    is_sqlite = connection.dialect.name == "sqlite"
    connection.execute(_upsert(is_sqlite=is_sqlite), [*rows] if is_sqlite else {"rows": rows_as_json(rows)})


def is_stale(stale_before: datetime) -> ColumnElement[bool]:
    """The condition that a row of `streams` is of a job without END, and without an event since `stale_before`."""
    # A column is named because a role may not be allowed to read them all.
    has_event = exists(events.c.job_id).where(
        events.c.job_id == jobs.c.job_id, events.c.sent_at >= stale_before, events.c.sent_at <= jobs.c.sent_until
    )
    # Where its range ends later than its latest event can be before it, there is no need to look for that event.
    is_later = jobs.c.sent_until >= stale_before + _RANGE_AHEAD
    is_live = exists().where(jobs.c.job_id == streams.c.job_id, or_(is_later, has_event))
    return and_(streams.c.state != StreamState.END, streams.c.since < stale_before, ~is_live)


def count_streams(stale_before: datetime) -> Select[tuple[str, int, int]]:
    """The query for how many `jobs` are in each `state`, and how many of these are `stale`, as `is_stale` has it."""
    count, stale = func.count().label("jobs"), func.sum(case((is_stale(stale_before), 1), else_=0)).label("stale")
    return select(streams.c.state, count, stale).group_by(streams.c.state)


@cache
def _upsert(*, is_sqlite: bool) -> sqlite.Insert | postgresql.Insert:
    insert: sqlite.Insert | postgresql.Insert
    if is_sqlite:
        insert = sqlite.insert(streams)
    else:
        names = list(streams.columns.keys())
        insert = postgresql.insert(streams).from_select(names, rows_from_json(streams, names))
    old, new = streams.c, insert.excluded
    return insert.on_conflict_do_update(
        index_elements=["job_id"],
        set_={name: func.coalesce(new[name], old[name]) for name in _KEPT}
        | {name: new[name] for name in ("state", "since", "received_at")},
        where=tuple_(new.since, place_in_second(new.state), new.received_at)
        >= tuple_(old.since, place_in_second(old.state), old.received_at),
    )
