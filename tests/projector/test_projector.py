from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from receiver.database.database import Database
from receiver.database.errors import RefusedError
from receiver.database.migration import REVISION, SchemaError
from receiver.database.rows import to_row
from receiver.database.schema import events, quarantine, streams
from receiver.projector import feeder
from receiver.projector.channel import Channel
from receiver.projector.worker import Worker, reason_of
from receiver.protocol.events import Event
from tests.helpers.database import sql
from tests.helpers.line import NOON, STALE_AFTER, Line, Logs, body, connected, delivery, laid, migrate, rows, started
from tests.helpers.postgres import PostgreSQL, new_database
from tests.helpers.receiver import SAMPLES, wait_until

ROOM, JOB = "26f065244f754b3aa853b649a21aaf66", "e87104f76d7546ce8a46ac6b04c49c3c"


@pytest.fixture
def line(tmp_path: Path, database_url: str, database: Database) -> Iterator[Line]:
    """A line to a migrated database."""
    database.check_schema()
    with started(tmp_path, database_url) as found:
        yield found


def empty(url: str) -> None:
    """Drop all that is in the database."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("DROP SCHEMA public CASCADE"))
                connection.execute(text("CREATE SCHEMA public"))
                return
            found = inspect(connection)
            for kind, names in (("VIEW", found.get_view_names()), ("TABLE", found.get_table_names())):
                for name in names:
                    connection.execute(text(f"DROP {kind} {name}"))
    finally:
        engine.dispose()


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(NOON + at, UTC)


COLUMNS: dict[str, dict[str, Any]] = {
    "SHOOT_SCRIPT_SWITCH": {
        "scene_script_name": "Product 1",
        "shoot_script_sequence_no": 2,
        "shoot_script_title": "Paragraph 2",
    },
    "RTMP_STREAM_STATE_CHANGE": {"output_url": "rtmp://xxx/xx/xx", "stream_key": "xxxxx", "state": "CONNECTED"},
    "REPLY_COMMAND_FINISH": {"reply_id": JOB},
}


@pytest.mark.parametrize("event_type", SAMPLES)
def test_official_samples(line: Line, database_url: str, event_type: str) -> None:
    """Each official sample, also the malformed third, is stored with every column right and the body as received."""
    sent = delivery(SAMPLES[event_type])
    line.put(sent)
    line.drain()
    (row,) = rows(database_url, events)
    known = {"endpoint": "default", "event_type": event_type, "room_id": ROOM, "job_id": JOB}
    times = {"sent_at": moment(0), "received_at": moment(0.5), "digest": sent.digest}
    nothing = dict.fromkeys(Event._fields)
    wanted = nothing | known | times | {"body": SAMPLES[event_type].decode()} | COLUMNS[event_type]
    assert row == {"id": 1} | wanted
    stream = {"job_id": JOB, "room_id": ROOM, "output_url": "rtmp://xxx/xx/xx", "state": "CONNECTED"}
    found = [stream | {"since": moment(0), "received_at": moment(0.5)}] if "STREAM" in event_type else []
    assert rows(database_url, streams) == found
    assert rows(database_url, quarantine) == []
    assert line.outcomes(event_type) == {"stored": 1}
    assert line.read() == []


NONSENSE = [
    (b"", "not_json"),
    (b"\x00\xff" + bytes(range(256)), "not_utf8"),
    ("{\x00}".encode("utf-16"), "not_utf8"),
    (b"[]", "not_an_object"),
    (b"[" * 100_000, "too_deep"),
    (b'{"event_type":"x","message":"{"}', "invalid_message"),
    (body(state="x").replace(b"job_id", b"jobid"), "missing_field"),
    (body(state=["CONNECTED"]), "invalid_field"),
    (body(state="CONNECTED", stream_key="\ud800"), "unstorable_text"),
    (body(state="CONNECTED", output_url="\0"), "unstorable_text"),
]


def test_what_is_not_understood_is_kept(line: Line, database_url: str) -> None:
    """A body that is not understood goes to quarantine with its exact bytes and the reason, and blocks nobody."""
    bad = [delivery(content, at) for at, (content, _) in enumerate(NONSENSE)]
    good = [delivery(body(state="CONNECTED"), at) for at in range(len(NONSENSE))]
    line.put(*(one for pair in zip(bad, good, strict=True) for one in pair))
    line.drain()
    kept = rows(database_url, quarantine)
    assert [(row["body"], row["reason"]) for row in kept] == NONSENSE
    for row, one in zip(kept, bad, strict=True):
        assert (row["endpoint"], row["digest"]) == ("default", one.digest)
        assert (row["sent_at"].timestamp(), row["received_at"].timestamp()) == (one.sent_at, one.received_at)
    assert [row["digest"] for row in rows(database_url, events)] == [one.digest for one in good]
    assert line.outcomes() == {"quarantined": len(NONSENSE)}
    assert line.read() == []


def test_stale_deliveries_are_kept_and_not_believed(line: Line, database_url: str) -> None:
    """What comes marked stale goes to quarantine, whatever its time and however good its body."""
    times = [0.0, NOON, 253402214400.0]  # the first and the last that hwTime can say
    content = body(state="END")
    line.put(*(delivery(content, sent_at=sent_at, quarantine_reason="stale") for sent_at in times))
    line.drain()
    kept = [(row["reason"], row["body"], row["sent_at"].timestamp()) for row in rows(database_url, quarantine)]
    assert kept == [("stale", content, sent_at) for sent_at in times]
    assert (rows(database_url, events), rows(database_url, streams)) == ([], [])
    assert line.outcomes() == {"quarantined": 3}
    assert line.metric("stream_transitions_total", state="END") == 0


@pytest.mark.parametrize("stale", [0, 1])
def test_same_delivery_stale_and_in_time(line: Line, database_url: str, stale: int) -> None:
    """One delivery that came both outside and inside the tolerance is kept and counted in both places."""
    marks: list[str | None] = [None, None]
    marks[stale] = "stale"
    line.put(*(delivery(body(state="END"), quarantine_reason=mark) for mark in marks))
    line.drain()
    assert (len(rows(database_url, quarantine)), len(rows(database_url, events))) == (1, 1)
    assert line.outcomes() == {"quarantined": 1}
    assert line.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": 1}
    assert line.metric("stream_transitions_total", state="END") == 1


def refuse(url: str, word: str) -> None:
    """Let the database refuse rows with `word` as the job, as a constraint of its owner would."""
    condition = f"job_id = '{word}'"
    statement = f"ALTER TABLE events ADD CHECK (NOT {condition})"
    if url.startswith("sqlite"):
        statement = (
            f"CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.{condition} BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_refused_row_stands_alone(logs: Logs, database_url: str, tmp_path: Path) -> None:
    """A row that the database refuses goes to quarantine; those of its batch are stored; repeats are repeats."""
    migrate(database_url)
    refuse(database_url, "refused")
    deliveries = [delivery(body(job_id=job, state="END"), at) for at, job in enumerate(["a", "refused", "b"])]
    with started(tmp_path, database_url) as line:
        line.put(*deliveries, deliveries[0], delivery(b"nonsense", 3))
        line.drain()
        assert [row["job_id"] for row in rows(database_url, events)] == ["a", "b"]
        assert [row["job_id"] for row in rows(database_url, streams)] == ["a", "b"]
        kept = [(row["reason"], row["body"], row["digest"]) for row in rows(database_url, quarantine)]
        assert kept[0] == ("refused", deliveries[1].body, deliveries[1].digest)
        assert [reason for reason, *_ in kept] == ["refused", "not_json"]
        assert line.read() == []
        assert line.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": 2, "duplicate": 1}
        assert line.outcomes() == {"quarantined": 2}
        assert line.metric("projector_errors_total", reason="refused") == 1
        wait_until(lambda: line.metric("database_up") == 1, "a database")
    assert logs.outage == ["event refused by the database"]


def test_refusals(database: Database) -> None:
    """What either database, its driver or SQLAlchemy refuses in a row is known as the row's fault."""
    row = to_row(delivery(body(state="END")))
    for wrong in ({"shoot_script_sequence_no": 2**63}, {"body": "\ud800"}, {"body": None}):
        with pytest.raises(RefusedError):
            database.store([row | wrong], [])


def test_missing_table_is_not_the_rows_fault(database: Database, database_url: str) -> None:
    """A table that is gone is the database's trouble: nothing goes to quarantine for it."""
    empty(database_url)
    with pytest.raises(SQLAlchemyError, match="events"):
        database.store([to_row(delivery(body(state="END")))], [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SchemaError("missing"), "schema"),
        (OperationalError("", {}, OSError()), "connection"),
        (RuntimeError("?"), "other"),
    ],
    ids=str,
)
def test_reasons(error: Exception, reason: str) -> None:
    """Each failure is counted under one of the known reasons."""
    assert reason_of(error) == reason


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
ANY_VALUE = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ANY_TEXT | st.lists(ANY_TEXT, max_size=2)
)
TYPES = st.sampled_from(sorted(COLUMNS)) | ANY_TEXT
NAMES = st.sampled_from(["room_id", "job_id", *(name for fields in COLUMNS.values() for name in fields)])
MESSAGES = st.dictionaries(NAMES, ANY_VALUE).map(lambda fields: {"job_id": "job", "state": "END"} | fields)
BODIES = st.binary() | st.builds(
    lambda event_type, message, as_text, ascii_only: json.dumps(
        {"event_type": event_type, "message": json.dumps(message) if as_text else message}, ensure_ascii=ascii_only
    ).encode(errors="surrogatepass"),
    TYPES,
    MESSAGES,
    st.booleans(),
    st.booleans(),
)


@given(contents=st.lists(BODIES, min_size=1, max_size=30))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_comes_leaves_the_journal_for_the_database(
    line: Line, database_url: str, contents: list[bytes]
) -> None:
    """Any bodies at all end in the events or in the quarantine, and what is understood is never refused."""
    deliveries = [delivery(content, at) for at, content in enumerate(contents)]
    line.put(*deliveries)
    line.drain()
    assert line.read() == []
    stored = {row["digest"]: row["body"].encode() for row in rows(database_url, events)}
    stored |= {row["digest"]: row["body"] for row in rows(database_url, quarantine)}
    assert all(stored[one.digest] == one.body for one in deliveries)
    assert line.metric("projector_errors_total", reason="refused") == 0


def test_batches(line: Line, database_url: str) -> None:
    """A long journal is moved in several transactions, in order."""
    line.put_each(*(delivery(body(state="CONNECTED"), at) for at in range(1001)))
    line.drain()
    assert [row["sent_at"] for row in rows(database_url, events)] == [moment(at) for at in range(1001)]


def test_crash_between_commit_and_removal(line: Line, database_url: str, tmp_path: Path) -> None:
    """What the database has and the journal still holds after a crash is stored once, and counted as repeats."""
    deliveries = [delivery(body(state=state), at) for at, state in enumerate(["CONNECTED", "END"])]
    deliveries.append(delivery(b"nonsense", 2))
    line.put(*deliveries)
    (tmp_path / "after the crash").mkdir()
    with laid(tmp_path / "after the crash", database_url) as after:
        after.put(*deliveries)
        line.drain()
        before = [rows(database_url, table) for table in (events, quarantine, streams)]
        after.put(delivery(body(state="CONNECTING"), 3))
        after.start()
        after.drain()
        assert [row["id"] for row in rows(database_url, events)[:2]] == [row["id"] for row in before[0]]
        assert rows(database_url, events)[:2] == before[0]
        assert rows(database_url, quarantine) == before[1]
        assert after.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": 1, "duplicate": 2}
        assert after.outcomes() == {"duplicate": 1}
        assert after.metric("stream_transitions_total", state="CONNECTED") == 0


def test_stale_streams(database_url: str, tmp_path: Path) -> None:
    """A stream without END and without a late event is counted as stale and nowhere else; live_jobs says the same."""
    migrate(database_url)
    now = time.time() - NOON
    with started(tmp_path, database_url, stale_after=3600) as line:
        line.put(
            delivery(body(state="CONNECTED", job_id="left behind"), now - 7200),
            delivery(body(state="CONNECTED", job_id="plays"), now - 7200),
            delivery(body("SHOOT_SCRIPT_SWITCH", job_id="plays"), now),
            delivery(body(state="END", job_id="ended"), now - 7200),
        )
        line.drain()
        wait_until(lambda: line.metric("streams_stale") == 1, "a count of the streams")
        assert [line.metric("streams", state=state) for state in ("CONNECTED", "END")] == [1, 1]
    assert sql(database_url, "SELECT job_id FROM live_jobs WHERE stale") == [{"job_id": "left behind"}]


def test_metrics(line: Line) -> None:
    """Outcomes, states, the latest times and the streams are counted; what is not known is `other`."""
    line.put(
        delivery(body(state="CONNECTED"), 5),
        delivery(body(state="CONNECTED", job_id="second"), 4),
        delivery(body(state="CONNECTED", job_id="second"), 4),
        delivery(body(state="NEWLY_INVENTED", job_id="third"), 3),
        delivery(body(state="newly invented too", job_id="fourth"), 2),
        delivery(body("NEW_TYPE"), 9),
        delivery(body("REPLY_COMMAND_FINISH"), 8, endpoint="no longer configured"),
        delivery(b"nonsense", 10),
    )
    line.drain()
    assert line.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": 4, "duplicate": 1}
    assert line.outcomes() == {"stored": 1, "quarantined": 1}
    states = ("CONNECTED", "END", "other")
    assert [line.metric("stream_transitions_total", state=state) for state in states] == [2, 0, 2]
    wait_until(lambda: [line.metric("streams", state=state) for state in states] == [2, 0, 2], "a count of the streams")
    latest = {
        event_type: line.metric("last_event_timestamp_seconds", event_type=event_type)
        for event_type in ("RTMP_STREAM_STATE_CHANGE", "REPLY_COMMAND_FINISH", "SHOOT_SCRIPT_SWITCH", "other")
    }
    assert list(latest.values()) == [NOON + 5, NOON + 8, 0, NOON + 9]
    wait_until(lambda: line.metric("database_up") == 1, "a database")


class Outage(NamedTuple):
    """A database that is away until `end`; it was migrated before."""

    url: str
    end: Callable[[], object]


@pytest.fixture(params=["sqlite", "postgresql"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    """A database of each kind that is away: a directory where the file should be; a server that does not run."""
    if request.param == "sqlite":
        link, there = tmp_path / "link.db", tmp_path / "receiver.db"
        migrate(f"sqlite:///{there}")
        link.symlink_to(tmp_path)
        (tmp_path / "new link").symlink_to(there)
        yield Outage(f"sqlite:///{link}", lambda: (tmp_path / "new link").replace(link))
    else:
        server: PostgreSQL = request.getfixturevalue("own_postgresql")
        with new_database(server.url) as url:
            migrate(url)
            with server.stopped() as start:
                yield Outage(url, start)


def test_outage_with_several_problems(own_postgresql: PostgreSQL, caplog: pytest.LogCaptureFixture) -> None:
    """Each problem of one outage is said once, so that the last one can be read too, and at most five are."""
    with new_database(own_postgresql.url) as url, connected() as (own, its):
        worker = Worker(Channel(its), url, STALE_AFTER)
        for problem in ("one", "two", "one", *"abcdefgh"):
            worker._report(RuntimeError(problem))  # noqa: SLF001 (no server has that many problems at once)
        migrate(url)
        worker._step()  # noqa: SLF001
        own.close()
        worker.run()
    said = [(record.message, vars(record).get("problem")) for record in caplog.records]
    still = [("database still down", f"RuntimeError: {problem}") for problem in ("two", "a", "b", "c")]
    assert said == [("database down", "RuntimeError: one"), *still, ("database up again", None)]


def test_outage(outage: Outage, tmp_path: Path, logs: Logs) -> None:
    """While the database is away the journal keeps all; one line says that it is away, and one that it is back."""
    with started(tmp_path, outage.url) as line:
        line.put(*(delivery(body(state="CONNECTED"), at) for at in range(10)))
        wait_until(lambda: line.metric("projector_errors_total", reason="connection") >= 3, "attempts")
        assert line.metric("journal_events") == len(line.read()) == 10
        assert line.metric("database_up") == 0
        assert logs.outage == ["database down"]
        outage.end()
        wait_until(lambda: line.metric("database_up") == 1, "the database's return")
        line.drain()
        assert len(rows(outage.url, events)) == 10
        assert line.outcomes("RTMP_STREAM_STATE_CHANGE") == {"stored": 10}
        assert line.metric("projector_errors_total", reason="refused") == 0
    assert logs.outage == ["database down", "database up again"]


def test_connection_that_breaks(own_postgresql: PostgreSQL, tmp_path: Path, logs: Logs) -> None:
    """When PostgreSQL goes away under an open connection nothing is lost, and nothing needs a restart."""
    with new_database(own_postgresql.url) as url:
        migrate(url)
        with started(tmp_path, url) as line:
            line.put(delivery(body(state="CONNECTED")))
            wait_until(lambda: line.metric("database_up") == 1, "a database")
            is_up, up_since = line.feeder.database
            assert is_up
            with own_postgresql.stopped():
                line.put(delivery(body(state="END"), 1))
                wait_until(lambda: line.metric("database_up") == 0, "an attempt")
                is_up, down_since = line.feeder.database
                assert is_up is False
                assert up_since < down_since <= time.time()
                wait_until(lambda: line.metric("projector_errors_total", reason="connection") >= 2, "another attempt")
                assert line.feeder.database == (False, down_since)
            line.drain()
            wait_until(lambda: line.metric("database_up") == 1, "the database's return")
            assert [row["state"] for row in rows(url, events)] == ["CONNECTED", "END"]
    assert logs.outage == ["database down", "database up again"]


def test_connection_that_broke_while_idle(own_postgresql: PostgreSQL, tmp_path: Path) -> None:
    """A restart of PostgreSQL between two deliveries goes unnoticed."""
    with new_database(own_postgresql.url) as url:
        migrate(url)
        with started(tmp_path, url) as line:
            for at in range(2):
                line.put(delivery(body(state="CONNECTED"), at))
                line.drain()
                with own_postgresql.stopped():
                    pass
        assert len(rows(url, events)) == 2


def test_schema_that_is_made_late(postgresql_url: str, tmp_path: Path, logs: Logs) -> None:
    """A server without the tables is waited for, saying what to run; once they are there all goes on by itself."""
    with started(tmp_path, postgresql_url) as line:
        line.put(delivery(body(state="CONNECTED")))
        wait_until(lambda: line.metric("projector_errors_total", reason="schema") >= 2, "attempts")
        assert line.metric("journal_events") == 1
        assert line.metric("database_up") == 0
        (line_of_log,) = logs.worker
        assert "run `receiver migrate`" in line_of_log["problem"]
        migrate(postgresql_url)
        line.drain()
        wait_until(lambda: line.metric("database_up") == 1, "the database's return")
        assert len(rows(postgresql_url, events)) == 1


def test_sqlite_gets_its_schema(tmp_path: Path) -> None:
    """A SQLite database without tables, also one that takes the place of the one in use, gets them."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    with started(tmp_path, url) as line:
        for at, state in enumerate(["CONNECTED", "END"]):
            line.put(delivery(body(state=state), at))
            line.drain()
            assert [row["state"] for row in rows(url, events)] == [state]
            empty(url)


def test_database_that_is_replaced(postgresql_url: str, tmp_path: Path) -> None:
    """When an empty database takes the place of the one in use, its tables are waited for again."""
    migrate(postgresql_url)
    with started(tmp_path, postgresql_url) as line:
        line.put(delivery(body(state="CONNECTED")))
        line.drain()
        empty(postgresql_url)
        line.put(delivery(body(state="END"), 1))
        wait_until(lambda: line.metric("projector_errors_total", reason="schema") >= 1, "an attempt")
        migrate(postgresql_url)
        line.drain()
        assert [row["state"] for row in rows(postgresql_url, events)] == ["END"]
        assert rows(postgresql_url, quarantine) == []


def test_schema_that_changes_meanwhile(database_url: str, tmp_path: Path) -> None:
    """Once the schema is another's, nothing is stored any more, nor put into quarantine, until it is right again."""
    migrate(database_url)
    with started(tmp_path, database_url) as line:
        line.put(delivery(body(state="CONNECTED")))
        line.drain()
        sql(database_url, "UPDATE alembic_version SET version_num = '9999'")
        refuse(database_url, "refused")
        line.put(delivery(body(state="END"), 1), delivery(body(job_id="refused", state="END"), 2))
        wait_until(lambda: line.metric("projector_errors_total", reason="schema") >= 2, "attempts")
        assert line.metric("journal_events") == 2
        assert [row["state"] for row in rows(database_url, events)] == ["CONNECTED"]
        assert rows(database_url, quarantine) == []
        sql(database_url, f"UPDATE alembic_version SET version_num = '{REVISION}'")
        line.drain()
        assert len(rows(database_url, events)) == 2
        assert [row["reason"] for row in rows(database_url, quarantine)] == ["refused"]


def test_new_deliveries_wake_the_projector(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery is moved when it comes, not when it is time to look again."""
    monkeypatch.setattr(feeder, "_TIDY_EVERY", 3600)
    for at in range(3):
        line.put(delivery(body(state="CONNECTED"), at))
        line.drain()


def test_stop_drains_the_journal(tmp_path: Path, database_url: str) -> None:
    """What is in the journal at a stop is moved within the grace."""
    migrate(database_url)
    with laid(tmp_path, database_url) as line:
        line.put(*(delivery(body(state="CONNECTED"), at) for at in range(1001)))
        line.start()
        line.stop(60)
        assert len(rows(database_url, events)) == 1001
        assert line.read() == []


def test_stop_during_an_outage(outage: Outage, tmp_path: Path) -> None:
    """A stop does not wait for a database that is away: the journal keeps all for the next start."""
    with laid(tmp_path, outage.url) as line:
        line.put(delivery(body(state="CONNECTED")))
        line.start()
        line.stop(3600)
        assert len(line.read()) == 1
    outage.end()
    with started(tmp_path, outage.url) as line:
        line.drain()
        assert len(rows(outage.url, events)) == 1
