"""The latest jobs, and the history of one job, read from the views."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select, true

from receiver.database import schema
from receiver.database.insert import Row
from receiver.database.platform import room_names, rows_of
from receiver.database.schema import PARAGRAPH, PRODUCT, jobs, live_jobs, platform_jobs
from receiver.protocol.events import EventType, StreamState

LATEST = 20
JOBS = (*live_jobs.c.keys(), "room_name", "platform_state")  # a row of `latest_jobs`
_LASTING = ("at", "ended_at", "duration_seconds")
TIMELINE = (*_LASTING, "event_type", "state", "output_url", *PARAGRAPH, "reply_id", *PRODUCT)
_CANDIDATES = 10  # that an error names


class UnknownJobError(Exception):
    """Not exactly one job has an id that begins as asked. The message quotes ids as they were sent: not escaped."""


class JobHistory(NamedTuple):
    """One job: its row of `live_jobs`, its sessions and outages, and its timeline, in order of time.

    Also its row of `platform_jobs`, None where the platform was not asked.

    A row of the timeline has the columns of `TIMELINE`, and is a state, which lasts until the next one, a paragraph of
    `script_timeline`, or a reply, which takes no time.
    """

    live_job: Row
    stream_sessions: list[Row]
    timeline: list[Row]
    stream_outages: list[Row]
    platform_job: Row | None


def latest_jobs(connection: Connection, *, room: str = "", since: datetime | None = None) -> list[Row]:
    """Rows of `live_jobs`, the latest event first: all with an event since a time, or the 20 latest.

    With the room's name, and the job's state at the platform, as far as that was asked; see `JOBS`.
    `room` is what the room's id begins with.
    """
    query = select(jobs.c.job_id).where(_begins(jobs.c.room_id, room)).order_by(jobs.c.sent_until.desc())
    query = query.limit(LATEST) if since is None else query.where(jobs.c.sent_until >= since)
    ids = connection.scalars(query).all()
    found = rows_of(connection, live_jobs, ids).values()
    rows = [row for row in found if since is None or row["last_event_at"] >= since]
    names, there = room_names(connection), rows_of(connection, platform_jobs, ids)
    for row in rows:
        row["room_name"] = names.get(row["room_id"])
        row["platform_state"] = there[row["job_id"]]["state"] if row["job_id"] in there else None
    return sorted(rows, key=lambda row: (row["last_event_at"], row["job_id"]), reverse=True)


def find_job(connection: Connection, prefix: str, *, room: str = "") -> str:
    """The id of the one job whose id begins so; raises `UnknownJobError` where there is none, or more than one."""
    in_room = _begins(jobs.c.room_id, room)
    if connection.scalar(select(jobs.c.job_id).where(jobs.c.job_id == prefix, in_room)) is not None:
        return prefix
    query = select(jobs.c.job_id).where(_begins(jobs.c.job_id, prefix), in_room)
    found: Sequence[str] = connection.scalars(query.order_by(jobs.c.first_sent_at.desc()).limit(_CANDIDATES + 1)).all()
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownJobError(f"no job begins with {prefix}" + (f" in a room that begins with {room}" if room else ""))
    more = " and more" if len(found) > _CANDIDATES else ""
    raise UnknownJobError(f"several jobs begin with {prefix}: {', '.join(found[:_CANDIDATES])}{more}")


def job_history(
    connection: Connection, job_id: str, *, since: datetime | None = None, most: int | None = None
) -> JobHistory:
    """The history of a job; with `since`, the timeline leaves out what had ended by then.

    With `most` it has no more than the latest so many rows of each kind. Raises `UnknownJobError` where no event of the
    job is left.
    """

    def rows(view: Table, *order: str) -> list[Row]:
        columns = (view.c[name] for name in order)
        ordered = select(view).where(view.c.job_id == job_id)
        if most is None:
            return _rows(connection, ordered.order_by(*(one.nulls_last() for one in columns)))
        latest_first = ordered.order_by(*(one.desc().nulls_first() for one in columns))
        return _rows(connection, latest_first.limit(most))[::-1]

    found = _rows(connection, select(live_jobs).where(live_jobs.c.job_id == job_id))
    if not found:  # it was pruned a moment ago
        raise UnknownJobError(f"nothing is left of job {job_id}")
    states = rows(schema.rtmp_stream_state_change, "sent_at", "place_in_second", "received_at")
    state_ends = [row["sent_at"] for row in states[1:]] + [None]
    paragraphs = rows(schema.script_timeline, "started_at", "ended_at")
    replies = rows(schema.reply_command_finish, "sent_at", "received_at")
    # This order holds within one second: the state comes before what was played in it.
    timeline = [
        *(
            _moment(EventType.RTMP_STREAM_STATE_CHANGE, row["sent_at"], end, row)
            for row, end in zip(states, state_ends, strict=False)
        ),
        *(_moment(EventType.SHOOT_SCRIPT_SWITCH, row["started_at"], row["ended_at"], row) for row in paragraphs),
        *(_moment(EventType.REPLY_COMMAND_FINISH, row["sent_at"], row["sent_at"], row) for row in replies),
    ]
    shown = [row for row in timeline if since is None or row["ended_at"] is None or row["ended_at"] >= since]
    sessions = rows(schema.stream_sessions, "connected_at", "disconnected_at")
    outages = rows(schema.stream_outages, "down_from", "down_to")
    there = rows_of(connection, platform_jobs, [job_id]).get(job_id)
    return JobHistory(found[0], sessions, sorted(shown, key=lambda row: row["at"]), outages, there)


def lasts_until(job: Row, now: datetime) -> datetime:
    """Up to when what has not ended counts: of a job without END now, unless it is stale; else its latest event."""
    latest: datetime = job["last_event_at"]
    return latest if job["state"] == StreamState.END or job["stale"] else max(now, latest)


def connected_seconds(job: Row, now: datetime) -> float:
    """How long a job was connected, with a session that lasts: `live_jobs` counts that up to the latest event."""
    seconds: float = job["connected_seconds"]
    if job["connected_since"] is None:
        return seconds
    more: timedelta = lasts_until(job, now) - job["last_event_at"]
    return seconds + more.total_seconds()


def outage_seconds(outages: Sequence[Row], job: Row, now: datetime) -> list[float]:
    """How long each of a job's outages took; one that lasts counts like a session that does."""
    until = lasts_until(job, now)
    return [((one["down_to"] or until) - one["down_from"]).total_seconds() for one in outages]


def lasted(row: Row, job: Row, now: datetime) -> tuple[float | None, bool]:
    """How many seconds a row of a job's timeline lasted, and whether it still lasts; None where that is not known."""
    if row["event_type"] == EventType.REPLY_COMMAND_FINISH:
        return None, False
    if row["ended_at"] is not None:
        return row["duration_seconds"], False
    has_ended = job["stale"] or job["state"] == StreamState.END
    return (None, False) if has_ended else (max((now - row["at"]).total_seconds(), 0.0), True)


def paragraph(row: Row) -> str:
    """What was played: the scene, the paragraph's number and title, and the product, as far as they were sent."""
    named = (row["shoot_script_sequence_no"], row["shoot_script_title"])
    title = " ".join(str(one) for one in named if one is not None)
    return " · ".join(filter(None, (row["scene_script_name"], title, row["product_title"] or row["product_id"])))


def _moment(event_type: EventType, at: datetime, ended_at: datetime | None, row: Row) -> Row:
    seconds = None if ended_at is None else (ended_at - at).total_seconds()
    moment = row | {"at": at, "ended_at": ended_at, "duration_seconds": seconds, "event_type": str(event_type)}
    return {name: moment.get(name) for name in TIMELINE}


def _begins(column: ColumnElement[str | None], prefix: str) -> ColumnElement[bool]:
    # Not LIKE: an id may contain its wildcards, and on SQLite it ignores case.
    return func.substr(column, 1, len(prefix)) == prefix if prefix else true()


def _rows(connection: Connection, query: Select[tuple[object, ...]]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
