"""What the platform said of jobs, as the other commands show it."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.platform import platform_findings, save_platform_jobs
from receiver.database.rows import to_row
from receiver.database.schema import platform_jobs
from tests.helpers.line import NOON, body, delivery

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database, with the settings of commands that read it."""
    url = f"sqlite:///{tmp_path}/receiver.db"
    settings = {
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": "https://events.example.com/",
        "RECEIVER_KEY": "k" * 32,
        "RECEIVER_DATABASE_URL": url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    database = Database(url)
    database.migrate()
    return database


def say(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def store(database: Database, job_id: str, state: str, at: datetime) -> None:
    sent = delivery(body(job_id=job_id, room_id=f"room of {job_id}", state=state), at.timestamp() - NOON)
    database.store([to_row(sent)], [])


def there(job_id: str, state: str, **fields: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(column.name for column in platform_jobs.columns)
    own = {"job_id": job_id, "room_id": f"room of {job_id}", "room_name": "夏日直播间", "state": state}
    return nothing | own | {"checked_at": NOW} | fields


@pytest.fixture
def jobs(database: Database) -> Database:
    """A job that the platform has ended and that is open here, one that runs, and one that nobody asked for."""
    for job_id in ("ended", "running", "unasked"):
        store(database, job_id, "CONNECTED", NOW - timedelta(days=2))
    times = {"start_time": NOW - timedelta(days=2), "end_time": NOW - timedelta(days=1)}
    why = {"error_code": "MSS.20030001", "error_msg": "推流失败", "finding": "end_missing"}
    save_platform_jobs(database, [there("ended", "FAILED", **times, **why), there("running", "PROCESSING")], NOW)
    return database


@pytest.mark.usefixtures("jobs")
def test_history_of_a_job() -> None:
    """A stale job that the platform has ended is shown as ended there, with the room's name, when, and why."""
    shown = say("history", "ended")
    assert "room    room of ended 夏日直播间\n" in shown
    assert "; ended there\n" in shown
    assert "stale" not in shown
    begin, end = (f"{NOW - timedelta(days=days):%Y-%m-%d %H:%M:%S}" for days in (2, 1))
    assert f"there   MetaStudio says FAILED {begin} to {end} UTC; MSS.20030001 推流失败; no END came here;" in shown
    assert "MetaStudio says PROCESSING; asked" in say("history", "running")
    assert "MetaStudio" not in say("history", "unasked")
    assert "stale" in say("history", "unasked")
    assert json.loads(say("history", "ended", "--json"))["platform_job"]["error_code"] == "MSS.20030001"


@pytest.mark.usefixtures("jobs")
def test_list_of_jobs() -> None:
    """The list has the room's name where it is known, and says what ended there."""
    lines = {line.split()[0]: line.split() for line in say("history").splitlines()}
    assert lines["ended"][1:4] == ["夏日直播间", "ended", "there"]
    assert lines["running"][1:3] == ["夏日直播间", "stale"]
    assert lines["unasked"][1:5] == ["room", "of", "unasked", "stale"]
    rows = {row["job_id"]: row for row in csv.DictReader(io.StringIO(say("history", "--csv")))}
    assert [(rows[one]["room_name"], rows[one]["platform_state"]) for one in ("ended", "unasked")] == [
        ("夏日直播间", "FAILED"),
        ("", ""),
    ]


@pytest.mark.usefixtures("jobs")
def test_report() -> None:
    """The report has the room's name, in its last column too."""
    rows = {row["room_id"]: row["room_name"] for row in json.loads(say("report", "--json"))["days"]}
    assert rows["room of ended"] == "夏日直播间"
    assert rows["room of unasked"] is None
    assert "夏日直播间" in say("report")


def test_what_is_deleted_and_pruned(jobs: Database) -> None:
    """What the platform said of a job goes with the job."""
    assert "1 platform_jobs" in say("delete", "ended", "--yes")
    save_platform_jobs(jobs, [there("old", "SUCCEED", checked_at=NOW - timedelta(days=100))], NOW)
    assert "1 platform_jobs" in say("prune", "--older-than", "90d")
    with jobs.reading() as connection:
        assert [row.job_id for row in connection.execute(platform_jobs.select())] == ["running"]


def test_what_is_counted(jobs: Database) -> None:
    """Only jobs that were looked at last are counted; what came after all is found no more."""
    assert platform_findings(jobs)[0]["end_missing"] == 1
    store(jobs, "ended", "END", NOW - timedelta(days=1))
    later = NOW + timedelta(minutes=5)
    save_platform_jobs(jobs, [there("running", "PROCESSING", finding="silent", checked_at=later)], later)
    counts, at = platform_findings(jobs)
    assert (counts["end_missing"], counts["silent"], at) == (0, 1, later)
    assert "no END" not in say("history", "ended")
