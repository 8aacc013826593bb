"""`receiver delete JOB`: all that is stored of one job goes, and nothing else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import func, select

from receiver.cli import main
from receiver.database import schema
from receiver.database.database import Database
from receiver.database.delete import delete_job
from receiver.database.rows import quarantine_row, to_row
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.receiver import KEY

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = "e87104f76d7546ce8a46ac6b04c49c3c"


def put(url: str, job: str, count: int, *, began: datetime = NOON, step: float = 1) -> None:
    """Store events of a job: a state, then replies."""
    bodies = [{"event_type": "RTMP_STREAM_STATE_CHANGE", "message": {"job_id": job, "state": "CONNECTED"}}]
    bodies += [
        {"event_type": "REPLY_COMMAND_FINISH", "message": {"job_id": job, "reply_id": f"{number}"}}
        for number in range(1, count)
    ]
    rows = []
    for number, body in enumerate(bodies):
        at = began.timestamp() + number * step
        digest = f"{job}{number}".encode()
        rows.append(to_row(Delivery("default", at, at, digest, json.dumps(body).encode())))
    with closing(Database(url)) as database:
        database.store(rows, [])


def put_quarantined(url: str, *bodies: bytes) -> None:
    rows = [
        quarantine_row(Delivery("default", NOON.timestamp(), NOON.timestamp(), b"%d" % number, body), "not_json")
        for number, body in enumerate(bodies)
    ]
    with closing(Database(url)) as database:
        database.store([], rows)


def environ(url: str) -> dict[str, str]:
    return {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY}


def delete(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["delete", *arguments], env=environ(url))


def deleted(url: str, *arguments: str) -> str:
    """The first line that it prints when it is done."""
    result = delete(url, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[0]


def jobs_of(url: str) -> dict[str, set[str]]:
    """Which jobs there are in each table that has a column for them, and that receivers fill."""
    return {
        table.name: {row["job_id"] for row in sql(url, select(table.c.job_id).distinct())}
        for table in schema.metadata.sorted_tables
        if "job_id" in table.c and table is not schema.platform_jobs
    }


def on_terminal(url: str, *arguments: str, answer: bytes) -> tuple[int, str]:
    """The exit code and what is shown where somebody at a terminal answers so."""
    own, other = pty.openpty()
    os.write(own, answer)
    command = [sys.executable, "-m", "receiver", "delete", *arguments]
    with subprocess.Popen(command, env=os.environ | environ(url), stdin=other, stdout=-1, stderr=-2) as process:
        os.close(other)
        shown, _ = process.communicate(timeout=60)
    os.close(own)
    return process.returncode, shown.decode()


def test_all_of_one_job(migrated_url: str) -> None:
    """All that is stored of the job goes, from every table that names jobs, and nothing of others."""
    put(migrated_url, JOB, 2500)
    put(migrated_url, f"{JOB}1", 30)
    put(migrated_url, "other", 30)
    put_quarantined(migrated_url, b"not JSON of " + JOB.encode(), b"of another")
    counts = "2500 events, 1 quarantined, 1 jobs, 1 streams"
    assert set(jobs_of(migrated_url)) == {"events", "jobs", "streams"}  # another table with jobs is filled here, too
    assert deleted(migrated_url, JOB, "--dry-run") == f"Would delete {counts} of job {JOB}."
    assert all(JOB in found for found in jobs_of(migrated_url).values())
    assert deleted(migrated_url, JOB, "--yes") == f"Deleted {counts} of job {JOB}."
    assert all(found == {f"{JOB}1", "other"} for found in jobs_of(migrated_url).values())
    assert [row["count"] for row in sql(migrated_url, "SELECT count(*) AS count FROM events")] == [60]
    assert [row["body"] for row in sql(migrated_url, "SELECT body FROM quarantine")] == [b"of another"]


def spelled(job: str) -> list[bytes]:
    """Bodies that name a job, one in each way that one may be quarantined."""
    message = {"job_id": job, "state": 1.5}
    return [
        json.dumps({"message": message}, ensure_ascii=False).encode(),
        json.dumps({"message": message}).encode(),
        json.dumps({"message": json.dumps(message, ensure_ascii=False)}, ensure_ascii=False).encode(),
        json.dumps({"message": json.dumps(message)}).encode(),
        json.dumps({"message": json.dumps(message)}, ensure_ascii=False).encode()[:-9],
        b"\xff\x00job_id=" + job.encode() + b"&state",
        job.encode(),
    ]


@pytest.mark.parametrize("job", ["job", "e8-71_04", "a.c", "50%", 'with "quotes"', "直播", "back\\slash", "it's"])
def test_quarantined_bodies(migrated_url: str, job: str) -> None:
    """Bodies that name the job in any spelling go; those that name another, which may begin or end alike, stay."""
    others = [f"x{job}", f"{job}1", f"{job}-", f"_{job}", "abc", "501", "JOB", "it"]
    kept = [body for other in others for body in spelled(other)] + [b"", b"\0"]
    put_quarantined(migrated_url, *spelled(job), *kept)
    assert deleted(migrated_url, job, "--yes").startswith("Deleted 0 events, 7 quarantined,")
    assert sorted(row["body"] for row in sql(migrated_url, "SELECT body FROM quarantine")) == sorted(kept)


def test_many_quarantined_bodies(migrated_url: str) -> None:
    """More than a batch of them, among others."""
    named = [b"%s %d" % (JOB.encode(), number) for number in range(350)]
    put_quarantined(migrated_url, *named, *(b"%s1 %d" % (JOB.encode(), number) for number in range(350)))
    assert deleted(migrated_url, JOB, "--yes").startswith("Deleted 0 events, 350 quarantined,")
    assert [row["count"] for row in sql(migrated_url, "SELECT count(*) AS count FROM quarantine")] == [350]


def test_stream_without_events(migrated_url: str) -> None:
    """What an earlier prune left of a job is deleted, too."""
    put(migrated_url, JOB, 1)
    for table in ("events", "jobs"):
        sql(migrated_url, f"DELETE FROM {table}")
    assert deleted(migrated_url, JOB, "--yes").startswith("Deleted 0 events, 0 quarantined, 0 jobs, 1 streams of")


@pytest.mark.parametrize("job", [JOB[:8], JOB.upper(), "%", "", "\x1b[31mjob"])
def test_unknown_job(migrated_url: str, job: str) -> None:
    """Only a whole id is taken, to the letter; for another nothing is deleted, which is a failure."""
    put(migrated_url, JOB, 3)
    result = delete(migrated_url, job, "--yes")
    assert result.exit_code == 1
    assert result.output.startswith("Error: nothing is stored of a job with the id ")
    assert result.output.strip().isprintable()
    assert all(found == {JOB} for found in jobs_of(migrated_url).values())


def test_without_a_terminal(migrated_url: str) -> None:
    """Where nobody can be asked, it is a wrong usage that says what to give; nothing is deleted."""
    put(migrated_url, JOB, 3)
    result = delete(migrated_url, JOB)
    assert result.exit_code == 2
    assert "give --yes" in result.output
    assert all(found == {JOB} for found in jobs_of(migrated_url).values())


def test_on_a_terminal(migrated_url: str) -> None:
    """It says how much it is, and asks; only a yes deletes."""
    put(migrated_url, JOB, 3)
    asked = f"Delete 3 events, 0 quarantined, 1 jobs, 1 streams of job {JOB}? [y/N]"
    for answer in (b"\n", b"n\n", b"\x04"):
        code, shown = on_terminal(migrated_url, JOB, answer=answer)
        assert code == 1
        assert asked in shown
        assert all(found == {JOB} for found in jobs_of(migrated_url).values())
    code, shown = on_terminal(migrated_url, JOB, answer=b"y\n")
    assert code == 0
    assert asked in shown
    assert "Deleted 3 events" in shown
    assert "journal_keep" in shown
    assert not any(jobs_of(migrated_url).values())


def test_each_batch_is_a_transaction(migrated_url: str) -> None:
    """A batch is committed before the next begins, and others store in between: also more of this job, which goes."""
    put(migrated_url, JOB, 5000)
    stored = list(between(migrated_url))
    assert len(stored) >= 5
    assert all(found == {"other"} for found in jobs_of(migrated_url).values())
    ((left,),) = [row.values() for row in sql(migrated_url, select(func.count().label("n")).select_from(schema.events))]
    assert left == len(stored)


def between(url: str) -> Iterator[int]:
    """Delete, and store an event of another job after each batch, and once one of this job."""
    with closing(Database(url)) as database:
        for number, (table, count) in enumerate(delete_job(database, JOB)):
            if table == "events" and count:
                put(url, "other", 1, began=NOON + timedelta(seconds=number))
                if number == 2:
                    put(url, JOB, 1, began=NOON - timedelta(hours=1))
                yield count
