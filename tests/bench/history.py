"""What the history's queries cost with more and more livestreams in the database, and a generator of these."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, create_engine, delete, func, literal_column, select, text

from receiver.database.database import Database
from receiver.database.history import find_job, job_history, latest_jobs
from receiver.database.overview import job, overview
from receiver.database.report import Period, report
from receiver.database.schema import events, jobs, live_jobs, stream_outages, streams
from receiver.protocol.events import StreamState

EVENTS_A_JOB = 500
LANES = 8  # jobs at one time; each runs for about two hours, which makes a hundred jobs and 50,000 events a day
_SECONDS_AN_EVENT = 1.728
_BEGAN = 1_700_000_000

# `n` numbers the events in the order of time, `job` the jobs; in its job an event is at `place`, from 0 on.
_NUMBERED = """
    SELECT n, n % {lanes} AS lane, (n / {lanes} + n % {lanes} * 61) % {length} AS place,
        (n / {lanes} + n % {lanes} * 61) / {length} * {lanes} + n % {lanes} AS job
    FROM {numbers}
"""
_TYPED = """
    SELECT *, CASE
            WHEN place = 0 THEN 'CONNECTING'
            WHEN place IN (1, 205) THEN 'CONNECTED'
            WHEN place = 200 THEN 'DISCONNECTED'
            WHEN place = 201 THEN 'RECONNECTING' WHEN place = {length} - 1 THEN 'END' END AS state,
        place % 5 = 4 AS is_reply
    FROM ({numbered}) AS numbered
"""
_COLUMNS = (
    "endpoint, event_type, room_id, job_id, sent_at, received_at, digest,"
    " scene_script_name, shoot_script_sequence_no, shoot_script_title, output_url, stream_key, state, reply_id, body"
)
_EVENTS = """
    INSERT INTO events ({columns})
    SELECT 'default',
        CASE WHEN state IS NOT NULL THEN 'RTMP_STREAM_STATE_CHANGE'
            WHEN is_reply THEN 'REPLY_COMMAND_FINISH' ELSE 'SHOOT_SCRIPT_SWITCH' END,
        'room-of-the-bench-' || lane, {job_id}, {time}, {time}, {digest},
        CASE WHEN state IS NULL AND NOT is_reply THEN '商品' || (place / 60) END,
        CASE WHEN state IS NULL AND NOT is_reply THEN place % 60 END,
        CASE WHEN state IS NULL AND NOT is_reply THEN '段落' || (place % 60) END,
        CASE WHEN state IS NOT NULL THEN 'rtmp://push.example.com/live/' || lane END,
        CASE WHEN state IS NOT NULL THEN 'made-up' END,
        state,
        CASE WHEN state IS NULL AND is_reply THEN 'reply-' || n END,
        :body
    FROM ({typed}) AS typed
    ORDER BY n
"""
_STREAMS = """
    INSERT INTO streams (job_id, room_id, output_url, state, since, received_at)
    SELECT job_id, room_id, output_url, state, sent_at, received_at
    FROM (
        SELECT *, row_number() OVER (PARTITION BY job_id ORDER BY sent_at DESC, received_at DESC) AS age
        FROM events WHERE state IS NOT NULL
    ) AS changes
    WHERE age = 1
"""
_BODY = '{"event_type":"SHOOT_SCRIPT_SWITCH","message":"{…}"}' + " " * 250
_BATCH = 250_000
_TIMES = 11
_EVER = 10**9  # seconds
_NOT_ENDED = select(streams).where(streams.c.state != literal_column(f"'{StreamState.END}'"))  # as its index has it
_BY_STATE = select(streams.c.state, func.count()).group_by(streams.c.state)


def fill(url: str, first: int, last: int) -> None:
    """Add livestreams to a migrated database: the events from number `first` to below `last`, in order of time."""
    engine = create_engine(url)
    statement = text(_insert_events(sqlite=engine.dialect.name == "sqlite"))
    with engine.connect() as connection:
        for begin in range(first, last, _BATCH):
            end = min(begin + _BATCH, last)
            connection.execute(statement, {"first": begin, "last": end - 1, "body": _BODY})
            connection.commit()
        connection.execute(text("DELETE FROM streams"))
        connection.execute(text(_STREAMS))
        connection.commit()
        if engine.dialect.name != "sqlite":  # as autovacuum would have done in the months that this took
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
    engine.dispose()


def _insert_events(*, sqlite: bool) -> str:
    words = [f"(job + {number}) * 2654435761 & 4294967295" for number in range(4)]
    if sqlite:
        job_id = f"printf('%08x%08x%08x%08x', {', '.join(words)})"
        at = f"strftime('%Y-%m-%d %H:%M:%S', {_BEGAN} + n * {_SECONDS_AN_EVENT}, 'unixepoch') || '.000000'"
        counted = "WITH RECURSIVE n(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM n WHERE n < :last) SELECT n FROM n"
        numbers, digest = f"({counted})", "randomblob(32)"
    else:
        job_id = " || ".join(f"lpad(to_hex({word}), 8, '0')" for word in words)
        at = f"to_timestamp({_BEGAN} + floor(n * {_SECONDS_AN_EVENT}))"
        numbers = "generate_series(CAST(:first AS bigint), :last) AS n"
        digest = "sha256(CAST(CAST(n AS text) AS bytea))"
    numbered = _NUMBERED.format(lanes=LANES, length=EVENTS_A_JOB, numbers=numbers)
    typed = _TYPED.format(length=EVENTS_A_JOB, numbered=numbered)
    return _EVENTS.format(columns=_COLUMNS, job_id=job_id, time=at, digest=digest, typed=typed)


def forget_what_is_newer(url: str) -> None:
    """Remove what was received beside the made-up livestreams, which are all older."""
    engine, year = create_engine(url), datetime(2026, 1, 1, tzinfo=UTC)
    with engine.begin() as connection:
        for table, column in ((events, events.c.sent_at), (jobs, jobs.c.first_sent_at)):
            connection.execute(delete(table).where(column >= year))
    engine.dispose()


def measure(url: str, count_of_events: int) -> dict[str, float]:
    """Milliseconds that each query takes, by its name: the median of several times, after a first one."""
    with closing(Database(url)) as database:
        # The livestreams ended long ago; for the status page those at the end are live.
        database.set_stale_after(_EVER)
    with closing(Database(url)) as database, database.reading() as connection:
        count = connection.scalar(select(func.count()).select_from(jobs)) or 0
        job_id = (
            connection.scalars(select(jobs.c.job_id).order_by(jobs.c.first_sent_at).offset(count // 2)).first() or ""
        )
        latest = datetime.fromtimestamp(_BEGAN + count_of_events * _SECONDS_AN_EVENT, UTC) - timedelta(hours=3)
        a_day_before, began = latest - timedelta(days=1), live_jobs.c.first_event_at
        day = select(live_jobs).where(began >= a_day_before, began < latest)
        of_day = stream_outages.c.down_from.between(a_day_before, latest)
        of_room = stream_outages.c.room_id == "room-of-the-bench-3"
        month = Period(latest - timedelta(days=30), latest)
        queries: dict[str, Callable[[Connection], object]] = {
            "history of one job": lambda one: job_history(one, find_job(one, job_id[:10])),
            "live_jobs for one day": lambda one: one.execute(day).all(),
            "streams that have not ended": lambda one: one.execute(_NOT_ENDED).all(),
            # The metric's query, which reads a row a job: it grows with these.
            "streams by state": lambda one: one.execute(_BY_STATE).all(),
            "latest jobs": latest_jobs,
            "status page": lambda one: overview(one, latest + timedelta(hours=3)),
            "status page of one job": lambda one: job(one, job_id),
            "stream_outages of one job": lambda one: one.execute(
                select(stream_outages).where(stream_outages.c.job_id == job_id)
            ).all(),
            "stream_outages of a room's day": lambda one: one.execute(
                select(stream_outages).where(of_room, of_day)
            ).all(),
            "stream_outages of a day": lambda one: one.execute(select(stream_outages).where(of_day)).all(),
            "report of a month": lambda one: report(one, month, UTC, now=latest),
        }
        return {name: _milliseconds(query, connection) for name, query in queries.items()}


def _milliseconds(query: Callable[[Connection], object], connection: Connection) -> float:
    times = []
    for _ in range(_TIMES + 1):
        began = time.perf_counter()
        assert query(connection)
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times[1:])[_TIMES // 2]
