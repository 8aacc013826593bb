from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from receiver.database.database import Database
from receiver.database.migration import SchemaError
from receiver.database.overview import MOST_OF_A_JOB, job, overview, reading
from receiver.database.platform import save_platform_jobs
from receiver.database.rows import to_row
from receiver.delivery import Delivery
from receiver.protocol.events import EventType
from receiver.protocol.platform import Finding
from receiver.tools.sender import body_of
from tests.helpers.database import sql

STALE_AFTER = timedelta(hours=12)
# jobs and platform_jobs have one row for hundreds of events.
READ_WHOLE = r"SCAN (?!jobs|j\b|c\b|a\b|stale_after|platform)|AUTOMATIC|Seq Scan on (?!jobs|stale_after|platform)"
STATE, SWITCH = EventType.RTMP_STREAM_STATE_CHANGE, EventType.SHOOT_SCRIPT_SWITCH


@pytest.fixture
def now() -> datetime:
    """What the views, which ask the database's clock, mean by now too."""
    return datetime.now(UTC).replace(microsecond=0)


def sent(database: Database, at: datetime, event_type: str, **message: Any) -> None:
    """Store an event."""
    database.store([row(at, event_type, **message)], [])


def row(at: datetime, event_type: str, **message: Any) -> dict[str, Any]:
    seconds = at.timestamp()
    return to_row(Delivery("default", seconds, seconds, b"%x" % int(seconds), body_of(event_type, message)))


def test_what_is_live_stale_and_on_now(database: Database, now: datetime) -> None:
    """A job without END is live, or stale where it sent nothing for long; the paragraph that came last is on now."""
    for job_id, ago, states in (
        ("live", timedelta(hours=2), ("CONNECTING", "CONNECTED")),
        ("ended", timedelta(minutes=5), ("CONNECTED", "END")),
        ("stale", timedelta(hours=13), ("CONNECTED",)),
        ("just stale", timedelta(hours=12, minutes=3), ("CONNECTED",)),  # in whose range there may still be events
    ):
        for second, state in enumerate(states):
            sent(database, now - ago + timedelta(seconds=second), STATE, job_id=job_id, room_id="room", state=state)
    for minutes, title in ((100, "first"), (90, "second")):
        sent(database, now - timedelta(minutes=minutes), SWITCH, job_id="live", shoot_script_title=title)
    sent(database, now - timedelta(minutes=95), SWITCH, job_id="ended", shoot_script_title="of another job")

    with reading(database, 60) as connection:
        found = overview(connection, now)

    assert [one["job_id"] for one in found.live] == ["live"]
    assert found.on_now["live"]["shoot_script_title"] == "second"
    assert [one["job_id"] for one in found.latest] == ["ended", "live", "just stale", "stale"]
    assert [one["job_id"] for one in found.stale] == ["just stale", "stale"]
    assert [one["job_id"] for one in found.sessions] == ["live"]
    assert found.outages == []  # it was down more than an hour ago
    assert [one["id"] for one in found.events] == sorted((one["id"] for one in found.events), reverse=True)
    assert len(found.events) == 9
    assert not found.has_more_live


def test_live_ones_behind_the_latest(database: Database, now: datetime) -> None:
    """A live stream is shown though many that have ended sent something later; of many live ones it says so."""
    sent(database, now - timedelta(hours=1), STATE, job_id="quiet", state="CONNECTED")
    for number in range(25):
        sent(database, now, STATE, job_id=f"ended {number}", state="END")
    with reading(database, 60) as connection:
        found = overview(connection, now)
    assert [one["job_id"] for one in found.live] == ["quiet"]
    assert len(found.latest) == 20
    assert "room_name" in found.live[0]

    for number in range(25):
        sent(database, now, STATE, job_id=f"live {number}", state="CONNECTED")
    with reading(database, 60) as connection:
        found = overview(connection, now)
    assert len(found.live) == 20
    assert found.has_more_live


def test_findings(database: Database, now: datetime) -> None:
    """What reconciling found when it ran last is shown, and nothing of earlier."""
    columns = ("room_id", "room_name", "state", "start_time", "end_time", "stream_duration")
    empty = dict.fromkeys((*columns, "error_code", "error_msg", "block_reason"))
    for at, job_id in ((now - timedelta(days=1), "earlier"), (now, "missing")):
        found_then = empty | {"job_id": job_id, "finding": Finding.END_MISSING, "checked_at": at}
        save_platform_jobs(database, [found_then], at)
    with reading(database, 60) as connection:
        found = overview(connection, now)
    assert [one["job_id"] for one in found.findings] == ["missing"]
    assert found.checked_at == now


def test_empty(database: Database, now: datetime) -> None:
    """Of an empty database there is nothing."""
    with reading(database, 60) as connection:
        found = overview(connection, now)
    assert not any([found.live, found.latest, found.events, found.stale, found.findings, found.checked_at])


def test_long_job_is_cut(database: Database, now: datetime) -> None:
    """Of a job with very many events the latest of each kind are read, and the counts are whole."""
    count = MOST_OF_A_JOB + 100
    begin = now - timedelta(seconds=2 * count)
    rows = [
        row(begin + timedelta(seconds=2 * number), STATE, job_id="long", state="CONNECTED" if number % 2 else "PAUSED")
        for number in range(count)
    ]
    rows += [
        row(begin + timedelta(seconds=2 * number + 1), SWITCH, job_id="long", shoot_script_sequence_no=str(number))
        for number in range(count)
    ]
    database.store(rows, [])
    with reading(database, 60) as connection:
        found = job(connection, "long")
    assert found.live_job["events"] == 2 * count
    assert len(found.timeline) == 2 * MOST_OF_A_JOB
    assert found.timeline[-1]["shoot_script_sequence_no"] == count - 1
    assert found.timeline[0]["at"] == begin + timedelta(seconds=200)
    assert [one["at"] for one in found.timeline] == sorted(one["at"] for one in found.timeline)


def test_schema(tmp_path: Path) -> None:
    """A database that is not migrated, or by a newer version, is not read."""
    with closing(Database(f"sqlite:///{tmp_path}/receiver.db")) as database:
        database.migrate()
        sql(f"sqlite:///{tmp_path}/receiver.db", "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaError), reading(database, 60):
            pass


def test_long_query_ends(database: Database) -> None:
    """A query ends with an error when its time is over, on both databases."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000000) SELECT max(i) FROM n"
    began = time.monotonic()
    with pytest.raises(OperationalError), reading(database, 0.05) as connection:
        connection.execute(text(numbers))
    assert time.monotonic() - began < 9  # PostgreSQL's other limit is 10 seconds


@contextmanager
def statements(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """The queries of the block, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_each_query_takes_an_index(database: Database, database_url: str, now: datetime) -> None:
    """No query of the page reads all events, or all streams."""
    for number in range(3):
        for state in ("CONNECTING", "CONNECTED"):
            sent(database, now, STATE, job_id=f"live {number}", state=state)
            sent(database, now, SWITCH, job_id=f"live {number}", shoot_script_title=state)
    with statements(vars(database)["_engine"]) as seen, reading(database, 60) as connection:
        assert overview(connection, now).on_now
        assert job(connection, "live 1").timeline
    queries = [one for one in seen if one[0].startswith(("SELECT", "WITH")) and "alembic" not in one[0]]
    assert len(queries) > 10
    engine = create_engine(database_url)
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with engine.begin() as connection:
        if not database.is_sqlite:  # so small a table would be read whole
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        for statement, parameters in queries:
            plan = [str(one[-1]) for one in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
            if "ORDER BY ordered_events.id DESC" in statement and database.is_sqlite:  # by the row's own number
                assert plan == ["SCAN events"]
                continue
            assert not any(re.search(READ_WHOLE, line) for line in plan), (statement, plan)
    engine.dispose()
