"""The views: the same answers on both databases, for whatever MetaStudio sends and in whatever order it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from itertools import count, permutations, product
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import DateTime, create_engine, insert, inspect, text

from receiver.database import schema
from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.rows import to_row
from receiver.delivery import Delivery
from tests.helpers.pages import blocks, read
from tests.helpers.postgres import new_database
from tests.helpers.quick import computes

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEWS = schema.views.tables
TYPES = {
    "state": "RTMP_STREAM_STATE_CHANGE",
    "scene_script_name": "SHOOT_SCRIPT_SWITCH",
    "reply_id": "REPLY_COMMAND_FINISH",
}


def event(at: float, received: float | None = None, /, **message: Any) -> Row:
    """The row of an event that was sent `at` and received (0.1 s later) `received` seconds after noon."""
    event_type = next((kind for name, kind in TYPES.items() if name in message), "SOMETHING_NEW")
    ids = {"room_id": "room", "job_id": "job"}
    body = json.dumps({"event_type": event_type, "message": json.dumps(ids | message)})
    row = to_row(Delivery("default", 0, 0, repr(at).encode(), body.encode()))
    received = at + 0.1 if received is None else received
    return row | {"sent_at": NOON + timedelta(seconds=at), "received_at": NOON + timedelta(seconds=received)}


class Views:
    """A migrated database, as an analyst sees it."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        self.engine = create_engine(url)

    def close(self) -> None:
        self.database.close()
        self.engine.dispose()

    def store(self, *rows: Row) -> None:
        self.database.store(rows, [])

    def query(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """What the query gives, with times as whole and broken seconds after noon."""
        with self.engine.begin() as connection:
            return [tuple(map(_plain, row)) for row in connection.execute(text(query), parameters)]

    def query_nothing(self, statement: str) -> None:
        """Run a statement that gives no rows."""
        with self.engine.begin() as connection:
            connection.execute(text(statement))

    def sessions(self, columns: str = "connected_at, disconnected_at, duration_seconds, ended_by") -> list[Any]:
        return self.query(f"SELECT {columns} FROM stream_sessions ORDER BY job_id, connected_at, disconnected_at")

    def outages(self, columns: str = "down_from, down_to, duration_seconds, began_with") -> list[Any]:
        return self.query(f"SELECT {columns} FROM stream_outages ORDER BY job_id, down_from, down_to")

    def timeline(self) -> list[Any]:
        return self.query(
            "SELECT shoot_script_title, started_at, ended_at, duration_seconds FROM script_timeline"
            " ORDER BY job_id, started_at, ended_at"
        )

    def all(self) -> dict[str, list[Any]]:
        """Every row of every view, without the rows' own numbers."""
        found = {name: [one.name for one in view.c if one.name != "id"] for name, view in VIEWS.items()}
        return {
            name: sorted(self.query(f"SELECT {', '.join(columns)} FROM {name}"), key=repr)
            for name, columns in found.items()
        }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - NOON).total_seconds()
    if isinstance(value, str) and len(value) == 26 and value[10] == " ":
        return (datetime.fromisoformat(value).replace(tzinfo=UTC) - NOON).total_seconds()
    return value


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Views]:
    """A database of each kind, for all tests of this module."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('views')}/receiver.db"
        else:
            url = stack.enter_context(new_database(request.getfixturevalue("postgresql_server")))
        yield stack.enter_context(closing(Views(url)))


@pytest.fixture
def views(migrated: Views) -> Views:
    """It, empty."""
    for table in ("events", "jobs", "streams"):
        migrated.query_nothing(f"DELETE FROM {table}")
    return migrated


def state(at: float, name: str, received: float | None = None, /, **message: Any) -> Row:
    return event(at, received, state=name, **message)


def paragraph(at: float, title: str, received: float | None = None, /, **message: Any) -> Row:
    return event(at, received, scene_script_name="商品1", shoot_script_title=title, **message)


def test_columns(views: Views) -> None:
    """The program declares the views and columns that the database has, in their order, and which are times."""
    found = inspect(views.engine)
    assert sorted(found.get_view_names()) == sorted([*VIEWS, "ordered_events"])  # of which the others are made
    for name, view in VIEWS.items():
        columns = found.get_columns(name)
        assert [one["name"] for one in columns] == view.c.keys()
        if not views.database.is_sqlite:  # whose views' columns have no types
            times = [one["name"] for one in columns if isinstance(one["type"], DateTime)]
            assert times == [one.name for one in view.c if isinstance(one.type, schema.UTCDateTime)]


def test_views_show_no_secrets(views: Views) -> None:
    """No view shows a stream key or a body."""
    views.store(
        *(state(at, name, stream_key="the-stream-key") for at, name in enumerate(("CONNECTING", "CONNECTED"))),
        paragraph(1, "段落1"),
        event(2, reply_id="r"),
    )
    for name in VIEWS:
        (row, *_) = views.query(f"SELECT * FROM {name}")
        assert "the-stream-key" not in repr(row)


def test_events_by_type(views: Views) -> None:
    """Each type has a view with its own columns, and other types are in none of these."""
    views.store(
        state(0, "CONNECTED", output_url="rtmp://one/"),
        paragraph(1, "段落1", shoot_script_sequence_no="2"),
        event(2, reply_id="r"),
        event(3),
    )
    found = views.all()
    ids = ("default", "room", "job")
    assert found["rtmp_stream_state_change"] == [(*ids, 0, 0.1, "rtmp://one/", "CONNECTED", 1)]
    assert found["shoot_script_switch"] == [(*ids, 1, 1.1, "商品1", 2, "段落1", None, None, None)]
    assert found["reply_command_finish"] == [(*ids, 2, 2.1, "r")]
    assert found["live_jobs"] == [("room", "job", 0, 3, "CONNECTED", 0, 3.0, 0, 4, 1, 1, 0, True)]


ORDINARY = [
    state(0, "CONNECTING"),
    state(2, "CONNECTED"),
    paragraph(3, "段落1"),
    paragraph(13.5, "段落2"),
    state(20, "DISCONNECTED"),
    state(21, "RECONNECTING"),
    state(30, "CONNECTED"),
    event(40, reply_id="r"),
    state(60.25, "END"),
]
ORDINARY_SESSIONS = [(2, 20, 18.0, "DISCONNECTED"), (30, 60.25, 30.25, "END")]
ORDINARY_JOB = ("room", "job", 0, 60.25, "END", 60.25, 48.25, 1, 9, 2, 1, None, False)


@pytest.mark.parametrize(
    "batches",
    [[ORDINARY], [ORDINARY[::-1]], [[row] for row in ORDINARY[::-1]], [ORDINARY[4:], ORDINARY[:4]]],
    ids=["in order", "backwards", "one by one", "late half"],
)
def test_out_of_order(views: Views, batches: Sequence[Sequence[Row]]) -> None:
    """A livestream reads the same in whatever order its events come, and however they are batched."""
    for batch in batches:
        views.store(*batch)
    assert views.sessions() == ORDINARY_SESSIONS
    assert views.timeline() == [("段落1", 3, 13.5, 10.5), ("段落2", 13.5, 60.25, 46.75)]
    assert views.query("SELECT * FROM live_jobs") == [ORDINARY_JOB]


def test_repeats(views: Views) -> None:
    """What comes twice counts once."""
    for _ in range(2):
        views.store(*ORDINARY, *ORDINARY)
    assert views.sessions() == ORDINARY_SESSIONS
    assert views.query("SELECT * FROM live_jobs") == [ORDINARY_JOB]


def test_one_second(views: Views) -> None:
    """Of events in one second the order is that in which they were received."""
    names = ["CONNECTED", "DISCONNECTED", "CONNECTED", "END", "one", "two", "END"]
    rows = [
        state(0, name, received, n=received) if name.isupper() else paragraph(0, name, received)
        for received, name in enumerate(names)
    ]
    views.store(*rows[::2], *rows[1::2])
    found = views.query("SELECT connected_at, disconnected_at, ended_by FROM stream_sessions ORDER BY ended_by")
    assert found == [(0, 0, "DISCONNECTED"), (0, 0, "END")]
    assert sorted(views.timeline()) == [("one", 0, 0, 0.0), ("two", 0, 0, 0.0)]
    assert views.query("SELECT state, connected_seconds, reconnects FROM live_jobs") == [("END", 0.0, 1)]


def test_reconnecting_without_disconnected(views: Views) -> None:
    """RECONNECTING alone says that the connection was lost."""
    views.store(state(0, "CONNECTED"), state(10, "RECONNECTING"), state(14, "CONNECTED"), state(20, "END"))
    assert views.sessions() == [(0, 10, 10.0, "RECONNECTING"), (14, 20, 6.0, "END")]
    assert views.query("SELECT connected_seconds, reconnects FROM live_jobs") == [(16.0, 1)]


def test_connected_twice(views: Views) -> None:
    """CONNECTED while it is connected is no news: the session goes on, and nothing was reconnected."""
    views.store(state(0, "CONNECTED"), state(10, "CONNECTED"), state(20, "DISCONNECTED"))
    assert views.sessions() == [(0, 20, 20.0, "DISCONNECTED")]
    assert views.query("SELECT connected_seconds, reconnects FROM live_jobs") == [(20.0, 0)]


def test_end_without_connected(views: Views) -> None:
    """A job that never was connected has no session, and counts no connected second."""
    views.store(state(0, "CONNECTING"), state(10, "END"))
    assert views.sessions() == []
    assert views.query("SELECT state, connected_seconds, reconnects FROM live_jobs") == [("END", 0.0, 0)]


def test_running_job(views: Views) -> None:
    """What lasts has neither end nor duration; the job counts as connected up to its latest event."""
    views.store(state(0, "CONNECTED"), paragraph(5, "段落1"), event(30, reply_id="r"))
    assert views.sessions() == [(0, None, None, None)]
    assert views.timeline() == [("段落1", 5, None, None)]
    assert views.query("SELECT last_event_at, state, connected_seconds FROM live_jobs") == [(30, "CONNECTED", 30.0)]


def test_output_url_changes(views: Views) -> None:
    """Another URL is another session, lost in between or not; a URL that is left out is the one before."""
    one, two = {"output_url": "rtmp://one/"}, {"output_url": "rtmp://two/"}
    views.store(
        state(0, "CONNECTED", **one),
        state(5, "DISCONNECTED"),
        state(6, "CONNECTED"),
        state(10, "CONNECTED", **two),
        state(15, "CONNECTED"),
        state(20, "CONNECTED", **one),
        state(30, "END", **one),
    )
    assert views.sessions("output_url, connected_at, disconnected_at, ended_by") == [
        ("rtmp://one/", 0, 5, "DISCONNECTED"),
        ("rtmp://one/", 6, 10, "CONNECTED"),
        ("rtmp://two/", 10, 20, "CONNECTED"),
        ("rtmp://one/", 20, 30, "END"),
    ]
    assert views.query("SELECT connected_seconds, reconnects FROM live_jobs") == [(29.0, 1)]


def test_undocumented_state(views: Views) -> None:
    """A state that nobody documented is not CONNECTED: it ends a session, and is named as what ended it."""
    views.store(state(0, "CONNECTED"), state(10, "PAUSED"), state(15, "CONNECTED"), state(20, "connected"))
    assert views.sessions() == [(0, 10, 10.0, "PAUSED"), (15, 20, 5.0, "connected")]
    assert views.query("SELECT state, reconnects FROM live_jobs") == [("connected", 1)]


def test_outages(views: Views) -> None:
    """A job is down before its first CONNECTED and whenever it is lost, with what was on when that began."""
    views.store(*ORDINARY)
    columns = "room_id, job_id, down_from, down_to, duration_seconds, began_with, shoot_script_title"
    assert views.outages(columns) == [
        ("room", "job", 0, 2, 2.0, "CONNECTING", None),
        ("room", "job", 20, 30, 10.0, "DISCONNECTED", "段落2"),
    ]


def test_outage_of_a_job_that_never_connected(views: Views) -> None:
    """It is one outage from the first state, whatever follows, to END; before END it lasts."""
    views.store(state(0, "CONNECTING"), state(3, "DISCONNECTED"), state(5, "CONNECTING"))
    assert views.outages() == [(0, None, None, "CONNECTING")]
    views.store(state(9, "END"))
    assert views.outages() == [(0, 9, 9.0, "CONNECTING")]


def test_outage_before_the_first_paragraph(views: Views) -> None:
    """Nothing was on, though a paragraph comes while it is down."""
    views.store(state(0, "CONNECTED"), state(5, "RECONNECTING"), paragraph(6, "段落1"), state(8, "CONNECTED"))
    assert views.outages("down_from, down_to, scene_script_name, shoot_script_title") == [(5, 8, None, None)]


def test_outage_that_lasts(views: Views) -> None:
    """A job that is down now has neither an end nor a duration, and names what was on."""
    views.store(state(0, "CONNECTED"), paragraph(1, "段落1", shoot_script_sequence_no=7), state(5, "RECONNECTING"))
    columns = "down_from, down_to, duration_seconds, scene_script_name, shoot_script_sequence_no, shoot_script_title"
    assert views.outages(columns) == [(5, None, None, "商品1", 7, "段落1")]


def test_outage_until_the_end(views: Views) -> None:
    """END without a reconnection ends the outage and begins none; so does a second END."""
    views.store(state(0, "CONNECTED"), state(5, "DISCONNECTED"), state(9, "END"), state(10, "END"))
    assert views.outages() == [(5, 9, 4.0, "DISCONNECTED")]


def test_no_outage(views: Views) -> None:
    """A job that was connected from its first state to its END was never down, and one without states neither."""
    views.store(state(0, "CONNECTED"), state(9, "END"), paragraph(0, "段落1", job_id="no states"))
    assert views.outages() == []


def test_outages_and_urls(views: Views) -> None:
    """Another URL is no outage while it is connected; an outage is of the URL that was in use when it began."""
    one, two = {"output_url": "rtmp://one/"}, {"output_url": "rtmp://two/"}
    views.store(
        state(0, "CONNECTING", **one),
        state(1, "CONNECTED"),
        state(5, "CONNECTED", **two),
        state(6, "DISCONNECTED"),
        state(8, "CONNECTED", **one),
        state(9, "RECONNECTING", **one),
        state(10, "CONNECTING", **two),
        state(12, "CONNECTED", **two),
    )
    assert views.outages("output_url, down_from, down_to") == [
        ("rtmp://one/", 0, 1),
        ("rtmp://two/", 6, 8),
        ("rtmp://one/", 9, 12),
    ]


def test_states_after_the_end(views: Views) -> None:
    """After END a job is not down until it sends a state again: then it is as streams says that it is."""
    views.store(state(0, "CONNECTED"), paragraph(1, "段落1"), state(2, "END"))
    views.store(state(5, "CONNECTED"), state(7, "DISCONNECTED"))
    assert views.outages("down_from, down_to, shoot_script_title") == [(7, None, None)]
    views.store(state(9, "END"), state(12, "RECONNECTING"))
    assert views.outages() == [(7, 9, 2.0, "DISCONNECTED"), (12, None, None, "RECONNECTING")]
    assert views.query("SELECT state, since FROM streams") == [("RECONNECTING", 12)]


def test_times_with_fractions(views: Views) -> None:
    """Where hwTime has milliseconds, they are the order, within a second too: nothing ever lasts less than no time."""
    views.store(state(0.1, "CONNECTED"), state(0.4, "END"), state(0.7, "CONNECTING"), state(0.9, "CONNECTED"))
    assert views.sessions("connected_at, disconnected_at") == [(0.1, 0.4), (0.9, None)]
    assert views.outages("down_from, down_to") == [(0.7, 0.9)]
    assert views.query("SELECT state, since FROM streams") == [("CONNECTED", 0.9)]


def test_products(views: Views) -> None:
    """What a paragraph's event tells of live and product is in the views of paragraphs; else it is NULL."""
    product = {"live_id": "直播1", "product_id": "42", "product_title": "春季新茶"}
    views.store(paragraph(0, "段落1", **product), paragraph(5, "段落2"), state(9, "END"))
    for view, order in (("shoot_script_switch", "sent_at"), ("script_timeline", "started_at")):
        found = views.query(f"SELECT live_id, product_id, product_title FROM {view} ORDER BY {order}")
        assert found == [("直播1", "42", "春季新茶"), (None, None, None)]


def test_stale(views: Views) -> None:
    """A job without END is stale once its latest event of any type is older than was set; an ended one never."""
    now = (datetime.now(UTC) - NOON).total_seconds()
    views.store(
        *(state(now - 7200, "CONNECTED", job_id=job) for job in ("played since", "old", "ended", "slow")),
        paragraph(now - 60, "段落1", job_id="played since"),
        state(now - 7100, "END", job_id="ended"),
        paragraph(now - 7200, "段落1", job_id="never a state"),
    )
    for at in (3900, 3400):  # the second one within the ten minutes for which the first one has widened the job's range
        views.store(paragraph(now - at, "段落1", job_id="slow"))
    left_behind = {36000: [], 3600: ["never a state", "old"], 1: ["never a state", "old", "played since", "slow"]}
    for after, stale in left_behind.items():
        views.database.set_stale_after(after)
        assert views.query("SELECT job_id FROM live_jobs WHERE stale ORDER BY job_id") == [(job,) for job in stale]
        before = datetime.now(UTC) - timedelta(seconds=after)
        left = len(stale) - ("never a state" in stale)
        states = sorted(views.database.stream_states(before))
        assert states == [("CONNECTED", 3 - left, left), ("END", 1, 0)]
    views.database.set_stale_after(10**18)
    assert views.query("SELECT job_id FROM live_jobs WHERE stale") == []
    views.database.set_stale_after(43200)


def test_session_that_lasts(views: Views) -> None:
    """live_jobs says since when the session lasts that has not ended, and nothing where none does."""
    views.store(state(0, "CONNECTED"), state(5, "DISCONNECTED"), state(6, "CONNECTED"), event(8, reply_id="r"))
    columns = "connected_since, connected_seconds, last_event_at"
    assert views.query(f"SELECT {columns} FROM live_jobs") == [(6, 7.0, 8)]
    views.store(state(9, "RECONNECTING"))
    assert views.query(f"SELECT {columns} FROM live_jobs") == [(None, 8.0, 9)]


def test_jobs_that_share_a_room(views: Views) -> None:
    """Jobs at one time in one room are told apart, and a job without a room is there too."""
    for job, end in (("a", 10), ("b", 20)):
        views.store(state(0, "CONNECTED", job_id=job), paragraph(1, "段落1", job_id=job), state(end, "END", job_id=job))
    views.store(state(5, "CONNECTED", job_id="c", room_id=None))
    assert views.sessions("job_id, room_id, disconnected_at") == [
        ("a", "room", 10),
        ("b", "room", 20),
        ("c", None, None),
    ]
    assert views.timeline() == [("段落1", 1, 10, 9.0), ("段落1", 1, 20, 19.0)]
    jobs = views.query("SELECT job_id, room_id, events FROM live_jobs ORDER BY job_id")
    assert jobs == [("a", "room", 3), ("b", "room", 3), ("c", None, 1)]


def test_room_that_is_told_later(views: Views) -> None:
    """A job's room is known as soon as one of its events names it."""
    views.store(state(0, "CONNECTED", room_id=None))
    views.store(paragraph(1, "段落1", room_id="the room"))
    assert views.query("SELECT room_id FROM live_jobs") == [("the room",)]
    assert views.query("SELECT room_id FROM stream_sessions") == [("the room",)]


def test_long_job(views: Views) -> None:
    """A job's events belong to it however far apart they are, and in whatever order they come one by one."""
    times = [0, 3600, 86_400 * 7, 1800, -3600]
    for at in times:
        views.store(paragraph(at, f"{at}"))
    assert [started for _, started, *_ in views.timeline()] == sorted(times)
    assert views.query("SELECT first_event_at, last_event_at, events FROM live_jobs") == [(-3600, 86_400 * 7, 5)]
    assert len(views.database.job("job")) == 5


def test_script_loops(views: Views) -> None:
    """A paragraph that is played again is another row, also right after itself."""
    views.store(
        *(paragraph(at, title) for at, title in enumerate(["段落1", "段落1", "段落2", "段落1"])), state(9, "END")
    )
    assert views.timeline() == [
        ("段落1", 0, 1, 1.0),
        ("段落1", 1, 2, 1.0),
        ("段落2", 2, 3, 1.0),
        ("段落1", 3, 9, 6.0),
    ]


def test_lost_connection_does_not_end_a_paragraph(views: Views) -> None:
    """Only the next paragraph, or the END of the stream, ends a paragraph."""
    views.store(state(0, "CONNECTED"), paragraph(1, "段落1"), state(2, "DISCONNECTED"), state(4, "CONNECTED"))
    assert views.timeline() == [("段落1", 1, None, None)]


def test_durations_are_exact(views: Views) -> None:
    """Durations are exact to the microsecond, over days too."""
    views.store(state(0.000001, "CONNECTED"), paragraph(0.1, "段落1"), state(604_800.123457, "END"))
    assert views.sessions("duration_seconds") == [(604_800.123456,)]
    assert views.query("SELECT connected_seconds FROM live_jobs") == [(604_800.123456,)]
    assert views.timeline() == [("段落1", 0.1, 604_800.123457, 604_800.023457)]


def test_rows_that_others_insert(views: Views) -> None:
    """The views are right for events that others insert by SQL, too."""
    views.store(*ORDINARY)
    for table in ("jobs", "streams"):
        views.query_nothing(f"DELETE FROM {table}")
    columns = [one for one in schema.events.c.keys() if one != "id"]  # noqa: SIM118 (its columns are no mapping)
    names = ", ".join(columns)
    views.query_nothing("CREATE TABLE kept AS SELECT * FROM events")
    views.query_nothing("DELETE FROM events")
    assert views.query("SELECT * FROM live_jobs") == []
    views.query_nothing(f"INSERT INTO events ({names}) SELECT {names} FROM kept")
    views.query_nothing("DROP TABLE kept")
    assert views.sessions() == ORDINARY_SESSIONS
    ((first, last, connected),) = views.query("SELECT first_event_at, last_event_at, connected_seconds FROM live_jobs")
    assert (first, last, connected) == (0, 60.25, 48.25)


def test_no_event_is_too_late_for_a_calendar(views: Views) -> None:
    """The last moment that a time can be is a time like any other."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    views.store(paragraph(0, "段落1") | {"sent_at": last})
    assert views.query("SELECT events FROM live_jobs") == [(1,)]


BEGINS = {  # the time with which a row of a view begins, where that is not sent_at
    "live_jobs": "first_event_at",
    "stream_sessions": "connected_at",
    "stream_outages": "down_from",
    "script_timeline": "started_at",
}
MIDNIGHT = "2026-03-01 00:00:00"


@pytest.mark.parametrize("view", VIEWS)
def test_quick_conditions(views: Views, view: str) -> None:
    """A condition on the job, the room or the time picks the events or the jobs by an index, before others are read."""
    views.store(*ORDINARY)
    begins = BEGINS.get(view, "sent_at")
    conditions = ["job_id = 'job'", f"{begins} >= '{MIDNIGHT}'", f"room_id = 'room' AND {begins} >= '{MIDNIGHT}'"]
    explain = "EXPLAIN QUERY PLAN" if views.database.is_sqlite else "EXPLAIN"
    with views.engine.begin() as connection:
        if not views.database.is_sqlite:  # so small a table would be read whole
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        for condition in conditions:
            statement = f"{explain} SELECT * FROM {view} WHERE {condition}"
            lines = [str(row[-1]) for row in connection.execute(text(statement.replace(":", r"\:")))]
            assert any("events_" in line for line in lines), lines
            # Each table is searched, and none read whole but jobs, which has one row for hundreds of events.
            read_whole = r"SCAN (?!j\b|c\b|a\b)|AUTOMATIC|Seq Scan on (?!jobs|stale_after)"
            assert not any(re.search(read_whole, line) for line in lines), lines
            if not views.database.is_sqlite:
                # What is compared with the value is a column of a table, not of what was made of all events.
                value = MIDNIGHT if begins in condition else "'job'"
                compared = [line for line in lines if value in line]
                assert any("Index Cond" in line for line in compared) or view == "live_jobs", lines
                assert compared, lines
                assert all(re.search(r"\(((j|e|s|events)(_\d+)?\.)?\w+ (=|>=) '", line) for line in compared), compared


NEW = ("live_id", "product_id", "product_title")


def test_migration_of_events_that_are_there(database_url: str) -> None:
    """Events that an earlier version stored are in the views after the migration, and streams are in the new order."""
    ended, up, lost = (
        ("ended", "END", "DISCONNECTED"),
        ("up", "CONNECTED", "CONNECTING"),
        ("lost", "CONNECTED", "PAUSED"),
    )
    in_one_second = [
        state(0, name, received / 10, job_id=job)
        for job, *names in (ended, up, lost)
        for received, name in enumerate(names)
    ]
    newest = [  # received last, as an earlier version had it
        {name: row[name] for name in ("job_id", "state", "received_at")} | {"since": row["sent_at"]}
        for row in in_one_second[1::2]
    ]
    engine = create_engine(database_url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            for row in (*ORDINARY, *in_one_second):
                connection.execute(insert(schema.events).values({name: row[name] for name in row if name not in NEW}))
            for row in newest:
                connection.execute(insert(schema.streams).values(row))
    finally:
        engine.dispose()
    with closing(Views(database_url)) as views:
        streams = views.query("SELECT job_id, state, received_at FROM streams ORDER BY job_id")
        assert streams == [("ended", "END", 0), ("lost", "PAUSED", 0.1), ("up", "CONNECTED", 0)]
        views.query_nothing("DELETE FROM events WHERE job_id <> 'job'")
        views.query_nothing("DELETE FROM jobs WHERE job_id <> 'job'")
        assert views.sessions() == ORDINARY_SESSIONS
        assert views.query("SELECT room_id, job_id, events FROM live_jobs WHERE first_event_at < '2026-03-02'") == [
            ("room", "job", len(ORDINARY))
        ]


STATES = ("CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "END", "SOMETHING")
URLS = (None, "rtmp://one/", "rtmp://two/")
CHANGES = st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(STATES), st.sampled_from(URLS))
PARAGRAPHS = st.tuples(st.integers(0, 6), st.integers(0, 3), st.none(), st.sampled_from(("段落1", "段落2")))
EVENTS = st.lists(CHANGES | PARAGRAPHS, max_size=12)


def rows_of(job: str, drawn: Sequence[tuple[int, int, str | None, str | None]]) -> list[Row]:
    return [
        state(at, name, received, job_id=job, output_url=other)
        if name
        else paragraph(at, str(other), received, job_id=job)
        for at, received, name, other in drawn
    ]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """What is stored of the rows, in the one order of a job's events."""
    first = {(row["sent_at"], row["digest"]): row for row in reversed(rows)}
    places = {"CONNECTING": 0, "END": 2}
    return sorted(
        first.values(),
        key=lambda row: (row["sent_at"], places.get(row["state"], 1), row["received_at"], row["digest"]),
    )


def modelled_sessions(rows: Sequence[Row]) -> list[list[Any]]:
    """[URL, connected, disconnected, ended by] of each session, as one would tell it to a colleague."""
    sessions: list[list[Any]] = []
    url = None
    is_open = False
    for row in ordered(rows):
        if row["state"] is None:
            continue
        new_url = row["output_url"] or url
        connected = row["state"] == "CONNECTED"
        moved = url is not None and new_url != url
        if is_open and (not connected or moved):
            sessions[-1][2:] = [_plain(row["sent_at"]), row["state"]]
            is_open = False
        if connected and not is_open:
            sessions.append([new_url, _plain(row["sent_at"]), None, None])
            is_open = True
        url = new_url
    return sessions


def modelled_paragraphs(rows: Sequence[Row]) -> list[list[Any]]:
    """[title, started, ended] of each paragraph."""
    paragraphs: list[list[Any]] = []
    for row in ordered(rows):
        if row["state"] is None or row["state"] == "END":
            if paragraphs and paragraphs[-1][2] is None:
                paragraphs[-1][2] = _plain(row["sent_at"])
            if row["state"] is None:
                paragraphs.append([row["shoot_script_title"], _plain(row["sent_at"]), None])
    return paragraphs


def modelled_outages(rows: Sequence[Row]) -> list[list[Any]]:
    """[URL, from, to, began with, title] of each outage."""
    outages: list[list[Any]] = []
    url = title = None
    is_down = False
    for row in ordered(rows):
        if row["state"] is None:
            title = row["shoot_script_title"]
            continue
        url = row["output_url"] or url
        if row["state"] in ("CONNECTED", "END"):
            if is_down:
                outages[-1][2] = _plain(row["sent_at"])
            is_down = False
        elif not is_down:
            outages.append([url, _plain(row["sent_at"]), None, row["state"], title])
            is_down = True
        title = None if row["state"] == "END" else title
    return outages


_numbers = count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=EVENTS)
def test_views_are_as_modelled(views: Views, drawn: list[tuple[int, int, str | None, str | None]]) -> None:
    """Whatever a job's events are, its sessions, paragraphs and totals are those of a plain model, on each database."""
    job = f"job {next(_numbers)}"
    rows = rows_of(job, drawn)
    views.store(*rows)
    sessions = modelled_sessions(rows)
    columns = "output_url, connected_at, disconnected_at, ended_by"
    found = views.query(f"SELECT {columns} FROM stream_sessions WHERE job_id = :job", job=job)
    assert sorted(found, key=repr) == sorted(map(tuple, sessions), key=repr)
    found = views.query(
        "SELECT shoot_script_title, started_at, ended_at FROM script_timeline WHERE job_id = :job", job=job
    )
    assert sorted(found, key=repr) == sorted(map(tuple, modelled_paragraphs(rows)), key=repr)
    found = views.query(
        "SELECT output_url, down_from, down_to, began_with, shoot_script_title FROM stream_outages WHERE job_id = :job",
        job=job,
    )
    assert sorted(found, key=repr) == sorted(map(tuple, modelled_outages(rows)), key=repr)
    found = views.query("SELECT connected_seconds, reconnects, events FROM live_jobs WHERE job_id = :job", job=job)
    kept = ordered(rows)
    if not kept:
        assert found == []
        return
    last = _plain(kept[-1]["sent_at"])
    connected = sum((last if end is None else end) - begin for _, begin, end, _ in sessions)
    moves = sum(by == "CONNECTED" for *_, by in sessions)
    assert found == [(connected, max(len(sessions) - moves - 1, 0), len(kept))]


KINDS = ("CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "END", "段落1")


def arrivals() -> list[list[Row]]:
    """For each order in which up to four different events can arrive, and each way to share two seconds: a job."""
    jobs: list[list[Row]] = []
    for kinds in (order for size in range(1, 5) for order in permutations(KINDS, size)):
        for seconds in product((0, 1), repeat=len(kinds)):
            number = len(jobs)
            jobs.append(
                [
                    (state if kind.isupper() else paragraph)(  # Chinese has no upper case
                        10 * number + second, kind, 10 * number + 2 + place / 10, job_id=f"job {number:05}"
                    )
                    for place, (kind, second) in enumerate(zip(kinds, seconds, strict=True))
                ]
            )
    return jobs


@pytest.mark.parametrize("batches", [[[0, 1], [2, 3]], [[3], [2], [1], [0]]], ids=["in pairs", "last received first"])
def test_every_order_of_arrival(views: Views, batches: list[list[int]]) -> None:
    """Up to four events of two seconds are the same history in whatever order they arrive and are stored."""
    computes()
    jobs = arrivals()
    assert len(jobs) == 6852
    for places in batches:
        views.store(*(rows[place] for rows in jobs for place in places if len(rows) > place))
    wanted: dict[str, list[Any]] = {"sessions": [], "outages": [], "timeline": [], "streams": [], "jobs": []}
    for rows in jobs:
        job_id = rows[0]["job_id"]
        sessions, outages, states = modelled_sessions(rows), modelled_outages(rows), []
        wanted["sessions"] += [(job_id, *session[1:]) for session in sessions]
        wanted["outages"] += [(job_id, *outage[1:]) for outage in outages]
        wanted["timeline"] += [(job_id, *one) for one in modelled_paragraphs(rows)]
        states = [row for row in ordered(rows) if row["state"]]
        last = _plain(max(row["sent_at"] for row in rows))
        state_now = (states[-1]["state"], _plain(states[-1]["sent_at"])) if states else (None, None)
        wanted["streams"] += [(job_id, *state_now, _plain(states[-1]["received_at"]))] if states else []
        connected = sum((last if end is None else end) - begin for _, begin, end, _ in sessions)
        since = sessions[-1][1] if sessions and sessions[-1][2] is None else None
        wanted["jobs"].append((job_id, *state_now, connected, max(len(sessions) - 1, 0), since))
    found = {
        "sessions": "connected_at, disconnected_at, ended_by FROM stream_sessions",
        "outages": "down_from, down_to, began_with, shoot_script_title FROM stream_outages",
        "timeline": "shoot_script_title, started_at, ended_at FROM script_timeline",
        "streams": "state, since, received_at FROM streams",
        "jobs": "state, state_since, connected_seconds, reconnects, connected_since FROM live_jobs",
    }
    for name, columns in found.items():
        assert sorted(views.query(f"SELECT job_id, {columns}"), key=repr) == sorted(wanted[name], key=repr)


def test_both_databases_answer_alike(tmp_path: Path, postgresql_url: str) -> None:
    """Every row of every view is the same, in the same types, on both databases."""
    hard = [
        *ORDINARY,
        *(
            row | {"job_id": "same second"}
            for row in (state(0, "CONNECTED"), state(0, "END", 0.1), state(0, "CONNECTED"))
        ),
        state(1, "CONNECTED", job_id="moves", output_url="rtmp://one/"),
        state(1.000001, "CONNECTED", job_id="moves", output_url="rtmp://two/"),
        state(9, "商品", job_id="moves"),
        *(paragraph(at, "é", job_id="loop", shoot_script_sequence_no=str(2**63 - 1)) for at in range(4)),
        event(3, job_id="nothing but this", room_id=None),
    ]
    found = []
    for url in (f"sqlite:///{tmp_path}/receiver.db", postgresql_url):
        with closing(Views(url)) as views:
            views.store(*hard)
            found.append(views.all())
    assert found[0] == found[1]
    found[0]["live_jobs"] = [(*row, bool(stale)) for *row, stale in found[0]["live_jobs"]]  # SQLite has no booleans
    assert [[list(map(type, row)) for row in rows] for rows in found[0].values()] == [
        [list(map(type, row)) for row in rows] for rows in found[1].values()
    ]


PAGE = "docs/reference/tables-and-views.md"


def test_example_queries(views: Views) -> None:
    """Each query of the page gives what its text says, on SQLite with the expressions that the text names for it."""
    queries = [block.text for block in blocks("docs/reference/tables-and-views.md", "Example queries")]
    if views.database.is_sqlite:
        (minutes,) = re.findall(r"SQLite has\s`(sum.*)`:", read(PAGE))
        (hour,) = re.findall(r"SQLite has\s`(strftime.*)`:", read(PAGE))
        queries = [
            re.sub(r"sum\(extract.* / 60", minutes, query).replace("date_trunc('hour', sent_at)", hour)
            for query in queries
        ]
    views.store(
        *(event_of(row) | {"product_id": "42" if row["shoot_script_title"] else None} for row in ORDINARY),
        *(state(at, name, job_id="down") for at, name in ((0, "CONNECTED"), (5, "RECONNECTING"))),
        *(state(at - 86400 * 4, "CONNECTED", job_id="old") for at in range(2)),
        *(paragraph(100 + at, "段落2", job_id="down") for at in range(3)),
        event(3600, reply_id="later", job_id="down"),
    )
    views.database.set_stale_after(10**12)
    found = [views.query(query) for query in queries]
    views.database.set_stale_after(43200)
    today, not_up, downtime, paragraphs, products, reconnect, replies = found
    job = "e87104f76d7546ce8a46ac6b04c49c3c"
    assert today == [("room", "down", "RECONNECTING", 5, 5.0, 0), ("room", job, "END", 60.25, 48.25, 1)]
    assert not_up == [("room", "down", "RECONNECTING", 5)]
    assert downtime == [(0, 2, 2.0, "CONNECTING", None), (20, 30, 10.0, "DISCONNECTED", "段落2")]
    assert paragraphs == [("商品1", None, "段落2", 4), ("商品1", None, "段落1", 1)]
    played = 10.5 + (60.25 - 13.5) - 10  # one paragraph, and the other but for an outage
    ((product, _, minutes),) = products
    assert (product, round(60 * float(minutes), 2)) == ("42", played)
    assert reconnect == [(10, 1)]
    assert [count for _, count in replies] == [1, 1]


def event_of(row: Row) -> Row:
    """The same event of the queries' job."""
    return row | {"job_id": "e87104f76d7546ce8a46ac6b04c49c3c"}
