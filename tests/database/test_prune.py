"""`receiver prune`: what is old goes, batch by batch, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Table, create_engine, func, select

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.prune import Age, count_older, delete_older
from receiver.database.rows import quarantine_row, to_row
from receiver.database.schema import events, jobs, quarantine, streams
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import compare
from tests.helpers.receiver import KEY

DAY = timedelta(days=1)
MOMENT = timedelta(microseconds=1)
NOTHING = {"events": 0, "quarantine": 0, "streams": 0, "jobs": 0, "platform_jobs": 0}


def delivery(sent_at: datetime, number: int = 0, **message: Any) -> Delivery:
    event_type = "RTMP_STREAM_STATE_CHANGE" if "state" in message else "REPLY_COMMAND_FINISH"
    body = json.dumps({"event_type": event_type, "message": json.dumps({"job_id": f"job {number}"} | message)})
    return Delivery("default", sent_at.timestamp() + 0.5, sent_at.timestamp(), b"%d" % number, body.encode())


def put(url: str, events_at: Sequence[datetime] = (), quarantined_at: Sequence[datetime] = ()) -> None:
    """Store a row for each of these times, which names no job."""
    # The times as they are given: POSIX seconds cannot hold each microsecond.
    event_rows = [to_row(delivery(at, number)) | {"sent_at": at, "job_id": None} for number, at in enumerate(events_at)]
    others = [quarantine_row(delivery(at, n), "not_json") | {"sent_at": at} for n, at in enumerate(quarantined_at)]
    with closing(Database(url)) as database:
        database.store(event_rows, others)


def column(url: str, table: Table, name: str) -> list[Any]:
    """All values of a column, in order."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(select(table.c[name]).order_by(table.c[name])))
    finally:
        engine.dispose()


def age_of(before: datetime) -> Age:
    """What is older than a time, where a job without END is stale as soon as it is old."""
    return Age(before, before)


def put_jobs(url: str, **jobs_: Sequence[tuple[datetime, str | None]]) -> None:
    """Store the events of jobs, each as (time, state); without a state it is a reply."""
    rows = [
        to_row(delivery(at, number, job_id=job, **({"state": state} if state else {}))) | {"sent_at": at}
        for job, moments in jobs_.items()
        for number, (at, state) in enumerate(moments)
    ]
    with closing(Database(url)) as database:
        database.store(rows, [])


def counts(url: str) -> list[int]:
    """How many rows there are of events, quarantine and streams."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = (events, quarantine, streams)
            return [connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables]
    finally:
        engine.dispose()


def prune(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["prune", *arguments], env={"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY})


def pruned(url: str, *arguments: str) -> str:
    """The last line that it prints when it is done."""
    result = prune(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "age", ["", "90", "d", "90 d", " 90d", "90d\n", "-1d", "+1d", "1.5d", "1w", "90D", "٩d", "1d2h"]
)
def test_wrong_age(tmp_path: Path, age: str) -> None:
    """What is not a number of days or hours is a wrong usage that names the option, and no database is made."""
    result = prune(f"sqlite:///{tmp_path}/receiver.db", f"--older-than={age}")
    assert result.exit_code == 2
    assert "--older-than" in result.output
    assert list(tmp_path.iterdir()) == []


def test_age_is_asked_for(tmp_path: Path) -> None:
    """There is no default age: without one nothing is deleted."""
    result = prune(f"sqlite:///{tmp_path}/receiver.db")
    assert result.exit_code == 2
    assert "--older-than" in result.output


def test_exact_boundary(migrated_url: str) -> None:
    """What was sent at the time itself, or a microsecond later, is kept; a microsecond earlier, it is deleted."""
    before = datetime(2024, 9, 11, tzinfo=UTC)
    times = [before - DAY, before - MOMENT, before, before + MOMENT, before + DAY]
    put(migrated_url, times, times)
    with closing(Database(migrated_url)) as database:
        assert count_older(database, age_of(before)) == NOTHING | {"events": 2, "quarantine": 2}
        for _ in delete_older(database, age_of(before)):
            pass
        assert count_older(database, age_of(before)) == NOTHING
    assert column(migrated_url, events, "sent_at") == column(migrated_url, quarantine, "sent_at") == times[2:]


@pytest.mark.parametrize(("age", "seconds"), [("90d", 90 * 86400), ("12h", 12 * 3600)])
def test_age_is_counted_from_now(migrated_url: str, age: str, seconds: int) -> None:
    """The boundary is the moment of the call minus the age, to the same moment for all rows."""
    began = datetime.now(UTC) - timedelta(seconds=seconds)
    times = [began + number * timedelta(milliseconds=10) for number in range(-200, 400)]
    put(migrated_url, times, times)
    line = pruned(migrated_url, "--older-than", age)
    ended_at = datetime.now(UTC) - timedelta(seconds=seconds)
    kept = column(migrated_url, events, "sent_at")
    assert kept == times[600 - len(kept) :] == column(migrated_url, quarantine, "sent_at")
    assert {time for time in times if time >= ended_at} <= set(kept) <= {time for time in times if time >= began}
    assert (
        line == f"Deleted {600 - len(kept)} events, {600 - len(kept)} quarantined, 0 streams, 0 jobs older than {age}."
    )


def test_jobs_stay_whole(migrated_url: str) -> None:
    """A job goes with all its events when its last one is old; one that still sends or ended later keeps them all."""
    now = datetime.now(UTC)
    old, young = now - 91 * DAY, now - 89 * DAY
    hours = timedelta(hours=1)
    put_jobs(
        migrated_url,
        ended=[(old - DAY, "CONNECTED"), (old, None), (old + hours, "END")],
        lost=[(old, "DISCONNECTED")],
        no_state=[(old, None), (old + hours, None)],
        ended_later=[(old - DAY, "CONNECTED"), (old, None), (young, "END")],
        still_sends=[(old - DAY, "CONNECTED"), (old, None), (young, None)],
        young=[(young, "CONNECTED"), (young + hours, "END")],
    )
    gone = "6 events, 0 quarantined, 2 streams, 3 jobs older than 90d."
    assert pruned(migrated_url, "--older-than=90d", "--dry-run") == f"Would delete {gone}"
    assert pruned(migrated_url, "--older-than=90d") == f"Deleted {gone}"
    left = ["ended_later", "still_sends", "young"]
    assert sorted(column(migrated_url, events, "job_id")) == sorted([*left * 2, *left[:2]])
    assert column(migrated_url, jobs, "job_id") == column(migrated_url, streams, "job_id") == left
    assert column(migrated_url, jobs, "first_sent_at")[:2] == [old - DAY, old - DAY]
    assert (
        pruned(migrated_url, "--older-than=90d") == f"Deleted {', '.join(f'0 {one}' for one in WHAT)} older than 90d."
    )


WHAT = ("events", "quarantined", "streams", "jobs")


def test_job_that_runs(migrated_url: str) -> None:
    """A job without END runs, however old its last event is, until it is stale."""
    before = datetime(2024, 9, 11, tzinfo=UTC)
    hour = timedelta(hours=1)
    put_jobs(
        migrated_url,
        runs=[(before - 3 * hour, "CONNECTED"), (before - 2 * hour, None)],
        ended=[(before - 3 * hour, "CONNECTED"), (before - 2 * hour, "END")],
        stale=[(before - 9 * hour, "CONNECTED"), (before - 8 * hour, None)],
    )
    with closing(Database(migrated_url)) as database:
        age = Age(before, stale=before - 4 * hour)
        assert count_older(database, age) == NOTHING | {"events": 4, "streams": 2, "jobs": 2}
        deleted = [table for table, count in delete_older(database, age) for _ in range(count)]
        assert sorted(deleted) == sorted(["events"] * 4 + ["jobs"] * 2 + ["streams"] * 2)
        assert column(migrated_url, events, "job_id") == ["runs", "runs"]
        assert column(migrated_url, jobs, "job_id") == column(migrated_url, streams, "job_id") == ["runs"]


def test_what_an_earlier_version_left(migrated_url: str) -> None:
    """A stream whose events are gone is deleted when it ended or is stale, by the time of its state."""
    now = datetime.now(UTC)
    put_jobs(migrated_url, old=[(now - 91 * DAY, "CONNECTED")], young=[(now - 89 * DAY, "CONNECTED")])
    for table in ("events", "jobs"):
        sql(migrated_url, f"DELETE FROM {table}")
    assert pruned(migrated_url, "--older-than=90d").startswith("Deleted 0 events, 0 quarantined, 1 streams, 0 jobs")
    assert column(migrated_url, streams, "job_id") == ["young"]


def test_many_jobs(migrated_url: str) -> None:
    """Many batches' worth of jobs is deleted, among which are as many that stay whole."""
    now = datetime.now(UTC)
    old = now - 91 * DAY
    both: dict[str, list[tuple[datetime, str | None]]] = {
        f"{number:04}{kind}": [(old + number * timedelta(seconds=1), "CONNECTED"), (last, "END")]
        for number in range(1200)
        for kind, last in (("gone", old + timedelta(hours=1)), ("kept", now - DAY))
    }
    put_jobs(migrated_url, **both)
    gone = "2400 events, 0 quarantined, 1200 streams, 1200 jobs older than 90d."
    assert pruned(migrated_url, "--older-than=90d") == f"Deleted {gone}"
    kept = sorted(one for one in both if one.endswith("kept"))
    assert sorted(column(migrated_url, events, "job_id")) == sorted(kept * 2)
    assert sorted(column(migrated_url, jobs, "job_id")) == sorted(column(migrated_url, streams, "job_id")) == kept


def test_many_rows(migrated_url: str) -> None:
    """Many batches' worth is deleted to the last row, though thousands of rows share one time, and nothing younger."""
    now = datetime.now(UTC)
    old = [now - 91 * DAY + number * timedelta(seconds=1) for number in range(3500)]
    old[1700:1700] = [old[1700]] * 4500  # begins in a batch, and is longer than several
    young = [now - 89 * DAY] * 2500
    put(migrated_url, old + young, old[1000:6000] + young)
    assert (
        pruned(migrated_url, "--older-than=90d")
        == "Deleted 8000 events, 5000 quarantined, 0 streams, 0 jobs older than 90d."
    )
    assert counts(migrated_url) == [2500, 2500, 0]
    assert column(migrated_url, events, "sent_at") == young == column(migrated_url, quarantine, "sent_at")
    assert (
        pruned(migrated_url, "--older-than=90d") == "Deleted 0 events, 0 quarantined, 0 streams, 0 jobs older than 90d."
    )


def test_each_batch_is_a_transaction(migrated_url: str) -> None:
    """A batch is committed before the next begins: others get their turn, and what is done stays done."""
    before = datetime(2024, 9, 11, tzinfo=UTC)
    put(migrated_url, [before - number * timedelta(seconds=1) for number in range(1, 5001)])
    left, batches = 5000, 0
    with closing(Database(migrated_url)) as database, closing(Database(migrated_url)) as other:
        for table, count in delete_older(database, age_of(before)):
            if table == "events":
                left -= count
                batches += 1
                # Another writes and reads in between.
                put(migrated_url, [before + batches * DAY])
                assert count_older(other, age_of(before))["events"] == left
    assert left == 0
    assert batches >= 5
    assert counts(migrated_url) == [batches, 0, 0]


def test_dry_run(migrated_url: str) -> None:
    """A dry run deletes nothing, and says what then is deleted."""
    now = datetime.now(UTC)
    put(migrated_url, [now - 2 * DAY] * 1500 + [now] * 2, [now - 3 * DAY] * 3 + [now] * 4)
    put_jobs(migrated_url, old=[(now - 2 * DAY, "END")], young=[(now, "END")])
    before = counts(migrated_url)
    for _ in range(2):
        line = pruned(migrated_url, "--older-than", "1d", "--dry-run")
        assert line == "Would delete 1501 events, 3 quarantined, 1 streams, 1 jobs older than 1d."
    assert counts(migrated_url) == before
    line = pruned(migrated_url, "--older-than", "1d")
    assert line == "Deleted 1501 events, 3 quarantined, 1 streams, 1 jobs older than 1d."
    assert counts(migrated_url) == [3, 4, 1]


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=str)
def test_nothing_to_do(migrated_url: str, arguments: list[str]) -> None:
    """An empty database, and one where all is young, are left alone; that is no failure."""
    verb = "Would delete" if arguments else "Deleted"
    for _ in range(2):
        line = pruned(migrated_url, "--older-than=12h", *arguments)
        assert line == f"{verb} 0 events, 0 quarantined, 0 streams, 0 jobs older than 12h."
        put(migrated_url, [datetime.now(UTC)], [datetime.now(UTC)])
    assert counts(migrated_url) == [2, 2, 0]


SLOW_TO_COUNT = """
    ALTER TABLE events RENAME TO counted_slowly;
    CREATE FUNCTION counts() RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN IF current_query() ILIKE '%count(%' THEN PERFORM pg_sleep(0.012); END IF; RETURN true; END $$;
    CREATE VIEW events AS SELECT * FROM counted_slowly WHERE counts();
"""


def test_table_that_takes_long_to_count(postgresql_url: str) -> None:
    """A table with so many rows that counting them takes longer than any transaction may is pruned all the same."""
    with closing(Database(postgresql_url)) as database:
        database.migrate()
    put(postgresql_url, [datetime.now(UTC) - 91 * DAY] * 1300)
    with closing(psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True)) as connection:
        connection.execute(SLOW_TO_COUNT)
    pruned(postgresql_url, "--older-than=90d")
    assert column(postgresql_url, events, "sent_at") == []


def test_beside_a_receiver(migrated_url: str, tmp_path: Path) -> None:
    """Beside a receiver that stores events at the same time all of the old goes, and nothing of the new."""
    cutoff = datetime.now(UTC) - 90 * DAY
    put(migrated_url, [cutoff - number * timedelta(seconds=7) for number in range(20_000)])
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=migrated_url)
    command = [sys.executable, "-m", "receiver", "prune", "--older-than", "90d"]
    load = Load([receiver])
    with ended(receiver):
        receiver.start()
        with load.running():
            load.wait_for(20)
            done = subprocess.run(
                command, cwd=tmp_path, env=os.environ | receiver.environ, check=True, capture_output=True
            )
            load.wait_for(20)
        compare("prune beside a receiver", load).check()
        errors = {
            labels: value for (name, labels), value in receiver.metrics().items() if name == "projector_errors_total"
        }
        assert receiver.stop() == 0
    assert (
        done.stdout.decode().splitlines()[-1]
        == "Deleted 20000 events, 0 quarantined, 0 streams, 0 jobs older than 90d."
    )
    assert column(migrated_url, events, "sent_at")[0] > cutoff
    if not migrated_url.startswith("sqlite"):  # where one writer may have to wait for another
        assert not any(errors.values())
        assert receiver.log == ""


def test_each_batch_begins_where_the_one_before_ended(migrated_url: str) -> None:
    """What is stored behind the place that was reached stays, with its job, and goes the next time."""
    now = datetime.now(UTC)
    put(migrated_url, [now - DAY - MOMENT * number for number in range(2000)])
    with closing(Database(migrated_url)) as database:
        deleting = delete_older(database, age_of(now))
        next(deleting)
        put_jobs(migrated_url, late=[(now - 2 * DAY, "CONNECTED")])
        assert sum(count for table, count in deleting if table == "events") == 1000
        assert column(migrated_url, jobs, "job_id") == ["late"]
        assert sum(count for table, count in delete_older(database, age_of(now)) if table == "events") == 1
    assert column(migrated_url, jobs, "job_id") == []
