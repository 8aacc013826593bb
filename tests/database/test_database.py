from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, select

from receiver.database.database import Database
from receiver.database.errors import RefusedError, problem_of
from receiver.database.insert import Key, Row
from receiver.database.migration import REVISION, SchemaError
from receiver.database.rows import quarantine_row, to_row
from receiver.database.schema import metadata, streams
from receiver.delivery import Delivery
from tests.helpers.database import sql

NOON = 1726012800.0
EVER = datetime.fromtimestamp(0, UTC)
BEIJING = timezone(timedelta(hours=8))


def delivery(at: Any = 0, received: Any = 0, **message: Any) -> Delivery:
    """A delivery that was signed `at` and received `received` seconds after noon."""
    event_type = "RTMP_STREAM_STATE_CHANGE" if "state" in message else "SHOOT_SCRIPT_SWITCH"
    body = json.dumps({"event_type": event_type, "message": json.dumps({"job_id": "job"} | message)})
    return Delivery("default", NOON + received, NOON + at, b"%x" % int(NOON + at), body.encode())


def event(at: Any = 0, received: Any = 0, **message: Any) -> Row:
    return to_row(delivery(at, received, **message))


def suspect(reason: str, at: float = 0, **message: Any) -> Row:
    return quarantine_row(delivery(at, **message), reason)


def keys(*rows: Row) -> set[Key]:
    return {(row["sent_at"], row["digest"]) for row in rows}


def without_id(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "id"} for row in rows]


def stream(url: str, *columns: str) -> list[Row]:
    """The streams, as programs see them."""
    return [dict(row) for row in sql(url, select(*(streams.c[name] for name in columns)).order_by(streams.c.job_id))]


def test_migrate(database_url: str) -> None:
    """An empty database is brought to the newest revision; the second time nothing is done and nothing lost."""
    database = Database(database_url)
    before, head = database.migrate()
    assert before is None
    database.store([event()], [])
    assert database.migrate() == (head, head)
    database.check_schema()
    assert len(database.job("job")) == 1
    database.close()


def test_several_migrate_at_once(database_url: str) -> None:
    """Of receivers that migrate one database at the same time one does it, and the others find it done."""
    barrier = Barrier(4)

    def migrate(_: int) -> tuple[str | None, str]:
        database = Database(database_url)
        barrier.wait()
        try:
            return database.migrate()
        finally:
            database.close()

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(migrate, range(4)))
    assert sorted(before is None for before, _ in done) == [False, False, False, True]


def test_missing_schema(database_url: str) -> None:
    """A database without the tables is refused, naming the command that makes them."""
    database = Database(database_url)
    with pytest.raises(SchemaError, match=r"schema is missing, .*: run `receiver migrate`"):
        database.check_schema()
    database.close()


def test_newer_schema(database: Database, database_url: str) -> None:
    """A database that a newer receiver has migrated is refused and left alone, with the advice to upgrade."""
    sql(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for use in (database.check_schema, database.migrate):
        with pytest.raises(SchemaError, match=r"at revision 9999, .*: upgrade the receiver"):
            use()
    assert sql(database_url, "SELECT version_num FROM alembic_version") == [{"version_num": "9999"}]


def test_store_into_another_schema(database: Database, database_url: str) -> None:
    """Once the schema is another's, a store raises and stores nothing; when it is right again, it stores."""
    sql(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="upgrade the receiver"):
        database.store([event(state="CONNECTED")], [suspect("stale")])
    assert (database.job("job"), database.quarantined(limit=10), database.stream_states(EVER)) == ([], [], [])
    sql(database_url, f"UPDATE alembic_version SET version_num = '{REVISION}'")
    assert database.store([event()], []).events == keys(event())


def test_revision_is_the_newest_migration(database_url: str) -> None:
    """A migrated database is at the revision that the program asks for, and asking again changes nothing."""
    with closing(Database(database_url)) as database:
        assert database.migrate() == (None, REVISION)
        assert database.migrate() == (REVISION, REVISION)
        database.check_schema()
    newest = max(path.name for path in Path("migrations/versions").glob("[0-9]*.py"))
    assert newest.startswith(f"{REVISION}_")
    assert sql(database_url, "SELECT version_num FROM alembic_version") == [{"version_num": REVISION}]


def test_sql_files_belong_to_a_migration() -> None:
    """Each file in migrations/sql/REVISION is named by that migration: none is left over, or in a wrong folder."""
    files = list(Path("migrations/sql").rglob("*.sql"))
    assert files
    for file in files:
        (migration,) = Path("migrations/versions").glob(f"{file.parent.name}_*.py")
        assert f'"{file.name.partition(".")[0]}"' in migration.read_text(), file


# The unique key of each table, and its indexes with their columns.
KEYS_AND_INDEXES: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "events": (["sent_at", "digest"], {"events_states": ["job_id", "sent_at"], "events_states_sent_at": ["sent_at"]}),
    "quarantine": (["sent_at", "digest"], {}),
    "streams": (["job_id"], {"streams_open": ["since"]}),
    "stale_after": ([], {}),
    "platform_jobs": (["job_id"], {}),
    "platform_check": ([], {}),
    "jobs": (["job_id"], {"jobs_first_sent_at": ["first_sent_at"], "jobs_sent_until": ["sent_until"]}),
}


def test_migrations_make_the_schema(database: Database, database_url: str) -> None:
    """The migrated tables have the columns, types and NOT NULLs of the program's schema, their keys and indexes."""
    database.check_schema()
    engine = create_engine(database_url)
    found = inspect(engine)
    assert sorted(found.get_table_names()) == sorted(["alembic_version", *metadata.tables])
    for name, table in metadata.tables.items():
        wanted = [(one.name, one.type.compile(engine.dialect), one.nullable) for one in table.columns]
        columns = found.get_columns(name)
        assert [(one["name"], one["type"].compile(engine.dialect), one["nullable"]) for one in columns] == wanted
        key, indexes = KEYS_AND_INDEXES[name]
        # On PostgreSQL the unique key is the primary key, and the id is only a number.
        unique = [one["column_names"] for one in found.get_unique_constraints(name)]
        assert key in [found.get_pk_constraint(name)["constrained_columns"], *unique]
        if name == "events" and not database.is_sqlite:  # where the id is only a number, and not the row's own
            indexes = indexes | {"events_id": ["id"]}
        assert {one["name"]: one["column_names"] for one in found.get_indexes(name)} == indexes
    engine.dispose()


def test_sqlite_keeps_commits(tmp_path: Path) -> None:
    """An SQLite database may be in a directory that is not there yet, and is in WAL mode, which lets readers read."""
    url = f"sqlite:///{tmp_path}/new/directory/receiver.db"
    database = Database(url)
    database.migrate()
    database.close()
    assert sql(url, "PRAGMA journal_mode") == [{"journal_mode": "wal"}]


def test_repeat_is_stored_once(database: Database) -> None:
    """An exact repeat, in the same batch or later, is stored once and as it first came; only new keys are returned."""
    first, repeat, other = event(received=1), event(received=2), event(at=1)
    assert database.store([first, repeat], []).events == keys(first)
    assert database.store([repeat, other, other], []).events == keys(other)
    assert database.store([repeat, other], []).events == set()
    assert without_id(database.job("job")) == [first, other]


def test_same_second_is_not_the_same_event(database: Database) -> None:
    """Events of one second, even with one signature, are several where the body, the endpoint or hwTime differs."""
    one = delivery(state="CONNECTED")
    others = [one._replace(endpoint="other"), one._replace(time_text=one.time_text.upper()), delivery(state="END")]
    rows = [to_row(found) for found in (one, *others)]
    assert len({row["sent_at"] for row in rows}) == 1
    assert database.store(rows, []).events == keys(*rows)
    assert len(database.job("job")) == 4


def test_quarantine(database: Database) -> None:
    """The quarantine keeps exact bytes and reason, stores repeats once, and is read in pages, by reason or all."""
    body = b"\x00\xff\xfe" + bytes(range(256))
    odd = quarantine_row(Delivery("default", NOON + 0.5, NOON, b"", body), "not_utf8")
    stale = [suspect("stale", at) for at in range(3)]
    assert database.store([], [odd, *stale, *stale]).quarantine == keys(odd, *stale)
    assert database.store([], stale).quarantine == set()
    found = database.quarantined(limit=100)
    assert sorted(without_id(found), key=lambda row: (row["sent_at"], row["reason"])) == [odd, *stale]
    assert without_id(database.quarantined(limit=100, reason="not_utf8")) == [odd]
    first, second = database.quarantined(limit=2), database.quarantined(limit=2, after=found[1]["id"])
    assert [*first, *second] == found
    assert len(database.quarantined(limit=1, after=found[0]["id"], reason="stale")) == 1


NEWEST = {"at": 2, "received": 2.5, "state": "DISCONNECTED"}
CHANGES: list[dict[str, Any]] = [
    {"at": 0, "received": 9.0, "state": "CONNECTING"},  # sent first, received last
    {"at": 2, "received": 2.1, "state": "CONNECTED"},
    {"at": 2, "received": 2.3, "state": "RECONNECTING"},
    NEWEST,
]


@pytest.mark.parametrize("together", [1, 2, 4])
def test_newest_state_wins_in_any_order(database: Database, database_url: str, together: int) -> None:
    """A job's state is that of the event sent last (in one second: received last), in whatever order and batches."""
    orders = [
        [event(job_id=f"job {number}", **change) for change in order]
        for number, order in enumerate(permutations(CHANGES))
    ]
    for start in range(0, len(CHANGES), together):
        database.store([row for order in orders for row in order[start : start + together]], [])
    newest = event(**NEWEST)
    wanted = {"state": "DISCONNECTED", "since": newest["sent_at"], "received_at": newest["received_at"]}
    assert stream(database_url, *wanted) == [wanted] * len(orders)


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0], [1], [2]]], ids=str)
def test_repeat_does_not_set_a_stream_back(database: Database, database_url: str, batches: list[list[int]]) -> None:
    """A repeat of an earlier state that comes after a later one of the same second changes nothing."""
    rows = [event(0, 0.1, state="CONNECTING"), event(0, 0.2, state="CONNECTED"), event(0, 0.3, state="CONNECTING")]
    for batch in batches:
        database.store([rows[number] for number in batch], [])
    assert database.job("job")[-1]["state"] == "CONNECTED"
    assert stream(database_url, "state") == [{"state": "CONNECTED"}]


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0], [1], [2]]], ids=str)
def test_stream_keeps_what_later_events_leave_out(
    database: Database, database_url: str, batches: list[list[int]]
) -> None:
    """A room or URL that a later event leaves out stays as it was known, however the events are batched."""
    rows = [
        event(0, state="CONNECTING", room_id="room", output_url="rtmp://one/"),
        event(1, state="CONNECTED", output_url="rtmp://two/"),
        event(2, state="END"),
    ]
    for batch in batches:
        database.store([rows[number] for number in batch], [])
    wanted = {"job_id": "job", "state": "END", "room_id": "room", "output_url": "rtmp://two/"}
    assert stream(database_url, *wanted) == [wanted]


def test_stream_states(database: Database) -> None:
    """The jobs are counted by their current state, and events without a state are of no stream."""
    assert database.stream_states(EVER) == []
    states = {"a": "CONNECTED", "b": "CONNECTED", "c": "END", "d": "SOMETHING_NEW"}
    database.store([event(job_id=job, state=state) for job, state in states.items()] + [event(job_id="e")], [])
    assert sorted(database.stream_states(EVER)) == [("CONNECTED", 2, 0), ("END", 1, 0), ("SOMETHING_NEW", 1, 0)]


def test_times_are_utc_to_the_microsecond(database: Database, database_url: str) -> None:
    """A time comes back aware, in UTC, to the microsecond, from the store as from a read, and SQL sees it in UTC."""
    moments = [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2024, 9, 11, 7, 59, 59, 999_999, tzinfo=BEIJING),
        datetime(2024, 9, 11, 0, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ]
    rows = [event() | {"sent_at": moment, "received_at": moment} for moment in moments]
    assert database.store(rows, []).events == keys(*rows)
    found = [time for row in database.job("job") for time in (row["sent_at"], row["received_at"])]
    assert found == [moment for moment in moments for _ in ("sent", "received")]
    assert {time.utcoffset() for time in found} == {timedelta(0)}
    shown = "sent_at" if database.is_sqlite else "to_char(sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
    wanted = [{"shown": f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"} for moment in moments]
    assert sql(database_url, f"SELECT {shown} AS shown FROM events ORDER BY sent_at") == wanted


def test_text_comes_back(database: Database) -> None:
    """Whatever Unicode the sender writes comes back, in every text column and in the body."""
    for words in ("商品1", "𠮷野家 🎉", "e\N{COMBINING ACUTE ACCENT}", "'; DROP TABLE events; --", "%s ? :x \n\t"):
        rows = [
            event(0, job_id=words, scene_script_name=words, shoot_script_title=words, room_id=words),
            event(1, job_id=words, state=words, output_url=words, stream_key=words),
            event(2, job_id=words) | {"event_type": words, "endpoint": words, "reply_id": words, "body": words},
        ]
        database.store(rows, [])
        assert without_id(database.job(words)) == rows


def test_sequence_numbers_of_64_bits(database: Database) -> None:
    """A sequence number of 64 bits comes back, on either database."""
    numbers = (2**63 - 1, 1 - 2**63, -(2**63), 2**31, 0, None)
    rows = [event(at) | {"shoot_script_sequence_no": number} for at, number in enumerate(numbers)]
    database.store(rows, [])
    assert without_id(database.job("job")) == rows


def test_job_is_in_order(database: Database) -> None:
    """A job's events are given by the time they were sent, then received; those of other jobs are not."""
    ordered = [event(at, received, n=at + received) for at, received in ((0, 3), (1, 1), (1, 2), (2, 0))]
    shuffled = random.Random(1).sample(ordered, len(ordered))
    database.store([*shuffled, event(job_id="other")], [])
    assert without_id(database.job("job")) == ordered
    assert database.job("no such job") == []


def test_release(database: Database, database_url: str) -> None:
    """A row moves from the quarantine to the events, and sets its stream; the second time it is a repeat."""
    rows = [suspect("stale", at, state="CONNECTED") for at in range(2)]
    database.store([], rows)
    first, second = database.quarantined(limit=10)
    row = event(0, state="CONNECTED")
    assert database.store([row], [], release=first["id"]).events == keys(row)
    assert without_id(database.job("job")) == [row]
    assert database.quarantined(limit=10) == [second]
    assert stream(database_url, "job_id", "state") == [{"job_id": "job", "state": "CONNECTED"}]
    assert database.store([row], [], release=second["id"]).events == set()
    assert database.quarantined(limit=10) == []


IMPOSSIBLE = {"shoot_script_sequence_no": 2**63}  # both databases refuse it


def test_release_is_all_or_nothing(database: Database) -> None:
    """A row whose event the database refuses stays in the quarantine."""
    database.store([], [suspect("stale")])
    (row,) = database.quarantined(limit=10)
    with pytest.raises(RefusedError):
        database.store([event() | IMPOSSIBLE], [], release=row["id"])
    assert database.quarantined(limit=10) == [row]
    assert database.job("job") == []


def test_store_is_all_or_nothing(database: Database) -> None:
    """When one row is refused none of its batch is stored, not in any table; the next batch is."""
    good = event(state="CONNECTED")
    with pytest.raises(RefusedError):
        database.store([good, event(1) | IMPOSSIBLE], [suspect("stale")])
    assert (database.job("job"), database.quarantined(limit=10), database.stream_states(EVER)) == ([], [], [])
    assert database.store([good], []).events == keys(good)


def test_several_receivers_share_a_database(database: Database, database_url: str) -> None:
    """Receivers that store the same events at the same time, each in its order, neither block nor store twice."""
    rows = [event(at, state="CONNECTED", job_id=f"job {at % 7}") for at in range(100)]
    doubtful = [suspect("stale", at) for at in range(100)]
    barrier = Barrier(4)

    def store(seed: int) -> list[Key]:
        shuffle, own = random.Random(seed), Database(database_url)
        new: list[Key] = []
        barrier.wait()
        for _ in range(5):
            stored = own.store(shuffle.sample(rows, 100), shuffle.sample(doubtful, 100))
            new += [*stored.events, *stored.quarantine]
        own.close()
        return new

    with ThreadPoolExecutor(4) as threads:
        stored = [one for found in threads.map(store, range(4)) for one in found]
    assert len(stored) == 200
    assert set(stored) == keys(*rows, *doubtful)
    assert database.stream_states(EVER) == [("CONNECTED", 7, 0)]


def test_problems_hold_no_values(database: Database) -> None:
    """What is logged of a refused row is one line, without the row's values and without the statement."""
    for wrong in (IMPOSSIBLE, {"shoot_script_title": "secret\ud800"}, {"body": None}):
        with pytest.raises(RefusedError) as caught:
            database.store([event() | {"stream_key": "secret"} | wrong], [])
        problem = str(caught.value)
        assert problem
        assert not any(word in problem for word in ("\n", "INSERT", "secret", str(2**63)))
        # A traceback shows more: PostgreSQL's own detail of a NULL, but no parameters.
        assert "[parameters:" not in str(caught.value.__cause__)


def test_problem_of_a_database_that_is_away_holds_no_password() -> None:
    """What is logged of a server that is not there names no password."""
    database = Database("postgresql+psycopg://receiver:hunter2@127.0.0.1:1/receiver")
    with pytest.raises(Exception, match="refused") as caught:
        database.check_schema()
    assert "hunter2" not in problem_of(caught.value)
    assert "refused" in problem_of(caught.value)
    database.close()
