"""What happened on each day in each room: read from the views and the table `streams`, which a reader may see."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Select, Table, and_, exists, func, or_, select

from receiver.database.history import lasts_until
from receiver.database.insert import Row
from receiver.database.platform import room_names
from receiver.database.schema import (
    PARAGRAPH,
    live_jobs,
    reply_command_finish,
    rtmp_stream_state_change,
    shoot_script_switch,
    stream_outages,
    stream_sessions,
    streams,
)
from receiver.protocol.events import StreamState

_SUMS = ("jobs", "connected_seconds", "outages", "down_seconds", "longest_outage_seconds", "paragraphs", "replies")
COLUMNS = ("day", "room_id", *_SUMS, *PARAGRAPH, "played", "room_name")
_IDS_A_QUERY = 500


class Period(NamedTuple):
    """From a time until before another."""

    begin: datetime
    end: datetime

    def part(self, begin: datetime, end: datetime) -> float | None:
        """How many seconds of what lasts from `begin` to `end` are in it; None where that does not touch it.

        What takes no time is in the period in which it begins.
        """
        if begin >= self.end or (end <= self.begin and begin < self.begin):
            return None
        return max((min(end, self.end) - max(begin, self.begin)).total_seconds(), 0.0)


def days_of(period: Period, zone: tzinfo) -> list[tuple[date, Period]]:
    """The days of a time zone in a period, the first and the last one as far as they are in it."""
    day = period.begin.astimezone(zone).date()
    days = []
    while (begin := _midnight(day, zone)) < period.end:
        end = _midnight(day + timedelta(days=1), zone)
        part = Period(max(begin, period.begin), min(end, period.end))
        if part.begin < part.end:  # a day that a time zone leaves out has no time
            days.append((day, part))
        day += timedelta(days=1)
    return days


def _midnight(day: date, zone: tzinfo) -> datetime:
    """When a day begins: where midnight is left out, at the change; where there are two, at the first."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


@dataclass
class _Tally:
    """What is added up for a row."""

    jobs: set[str] = field(default_factory=set)
    connected: float = 0.0
    outages: int = 0
    down: float = 0.0
    longest: float = 0.0
    replies: int = 0
    paragraphs: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def add_span(self, seconds: float, *, is_outage: bool) -> None:
        """Add a part of a session, or of an outage."""
        if not is_outage:
            self.connected += seconds
            return
        self.outages += 1
        self.down += seconds
        self.longest = max(self.longest, seconds)

    def row(self, day: str, room_id: str | None) -> Row:
        """With the columns of `COLUMNS`."""
        most = max(self.paragraphs.values(), default=0)
        first = min(
            (one for one, times in self.paragraphs.items() if times == most), key=_in_order, default=(None,) * 3
        )
        sums = (len(self.jobs), self.connected, self.outages, self.down, self.longest)
        counts = (self.paragraphs.total(), self.replies)
        return dict(zip(COLUMNS, (day, room_id, *sums, *counts, *first, most or None, None), strict=True))


def _in_order(paragraph: tuple[object, ...]) -> tuple[object, ...]:
    """By which, of the paragraphs that were played as often, the first is chosen: what is left out comes last."""
    return tuple((part is None, part) for part in paragraph)


class _Tallies:
    """The rows, and the one for all of them, of the rooms whose ids begin so."""

    def __init__(self, room: str) -> None:
        self._room = room
        self._rooms: dict[str, str | None] = {}
        self.rows: dict[tuple[str, str | None], _Tally] = defaultdict(_Tally)
        self.total = _Tally()

    def knows(self, job: Row) -> bool:
        """Whether a row of a job counts; the job's room is the one that is told first, which is the job's own."""
        room_id = self._rooms.setdefault(job["job_id"], job["room_id"])
        return (room_id or "").startswith(self._room)

    def of(self, day: date, job_id: str) -> _Tally:
        """The row of a job on a day, in which it is counted."""
        tally = self.rows[day.isoformat(), self._rooms[job_id]]
        for one in (tally, self.total):
            one.jobs.add(job_id)
        return tally


def report(
    connection: Connection, period: Period, zone: tzinfo, *, now: datetime, room: str = ""
) -> tuple[list[Row], Row]:
    """A row for each day and room of which there is something, in order, and one for the whole period.

    Of a session or an outage over midnight each day has its part. What lasts counts up to `now`, and in a job that is
    stale up to its latest event. `room` is what the room's id begins with.
    """
    days = days_of(period, zone)
    tallies = _Tallies(room)
    for is_outage, row, ended_at in _spans(connection, period, now):
        whole = period.part(row["began_at"], ended_at)
        if whole is None or not tallies.knows(row):
            continue
        tallies.total.add_span(whole, is_outage=is_outage)
        for day, part in days:
            seconds = part.part(row["began_at"], ended_at)
            if seconds is not None:
                tallies.of(day, row["job_id"]).add_span(seconds, is_outage=is_outage)
    for day, part in days:
        for row in filter(tallies.knows, _counts(connection, shoot_script_switch, part, PARAGRAPH)):
            for one in (tallies.of(day, row["job_id"]), tallies.total):
                one.paragraphs[tuple(row[name] for name in PARAGRAPH)] += row["times"]
        for row in filter(tallies.knows, _counts(connection, reply_command_finish, part, ())):
            for one in (tallies.of(day, row["job_id"]), tallies.total):
                one.replies += row["times"]
    in_order = sorted(tallies.rows, key=lambda key: (key[0], key[1] is None, key[1] or ""))
    names = room_names(connection)
    rows = [tallies.rows[key].row(*key) | {"room_name": names.get(key[1] or "")} for key in in_order]
    return rows, tallies.total.row("total", None)


def _counts(connection: Connection, view: Table, part: Period, names: Sequence[str]) -> Iterator[Row]:
    """How many events of a view there are in a part of time, by job and by these columns."""
    columns = [view.c[name] for name in names]
    query = select(view.c.job_id, func.max(view.c.room_id).label("room_id"), *columns, func.count().label("times"))
    query = query.where(view.c.sent_at >= part.begin, view.c.sent_at < part.end).group_by(view.c.job_id, *columns)
    yield from (dict(row) for row in connection.execute(query).mappings())


def _spans(connection: Connection, period: Period, now: datetime) -> Iterator[tuple[bool, Row, datetime]]:
    """The sessions (False) and outages (True) that may reach into a period, each with its end."""
    ids = sorted(_jobs_with_states(connection, period))
    for first in range(0, len(ids), _IDS_A_QUERY):
        some = ids[first : first + _IDS_A_QUERY]
        rows = [
            (is_outage, dict(row))
            for is_outage, view, began, ended in (
                (False, stream_sessions, "connected_at", "disconnected_at"),
                (True, stream_outages, "down_from", "down_to"),
            )
            for row in connection.execute(_reaching(view, view.c[began], view.c[ended], some, period)).mappings()
        ]
        lasting = {row["job_id"] for _, row in rows if row["ended_at"] is None}
        job = live_jobs.c
        query = select(job.job_id, job.state, job.last_event_at, job.stale).where(job.job_id.in_(lasting))
        # SQLite reads everything for a list of none.
        jobs = connection.execute(query).mappings().all() if lasting else ()
        until = {row["job_id"]: lasts_until(dict(row), now) for row in jobs}
        for is_outage, row in rows:
            # What was pruned a moment ago is not in live_jobs.
            yield is_outage, row, row["ended_at"] or until.get(row["job_id"], row["began_at"])


def _reaching(
    view: Table, began: Column[datetime], ended: Column[datetime], ids: Sequence[str], period: Period
) -> Select[Any]:
    # Without a condition on when it began, by which SQLite would choose an index and read all that began before.
    return select(view.c.room_id, view.c.job_id, began.label("began_at"), ended.label("ended_at")).where(
        view.c.job_id.in_(ids), or_(ended.is_(None), ended >= period.begin)
    )


def _jobs_with_states(connection: Connection, period: Period) -> set[str]:
    """The jobs with a state in a period: one that changed in it, or one from before that lasted all the time."""
    state = rtmp_stream_state_change.c
    changed = select(state.job_id).distinct().where(state.sent_at >= period.begin, state.sent_at < period.end)
    earlier = exists().where(state.job_id == streams.c.job_id, state.sent_at < period.begin)
    lasted = select(streams.c.job_id).where(
        or_(
            and_(streams.c.since < period.begin, streams.c.state != StreamState.END),
            and_(streams.c.since >= period.end, earlier),
        )
    )
    return {*connection.scalars(changed), *connection.scalars(lasted)}
