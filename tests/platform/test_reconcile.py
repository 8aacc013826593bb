"""`receiver reconcile`, with the vendor's SDK, against a stub of the platform, and a real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.platform import platform_findings
from receiver.database.rows import to_row
from receiver.database.schema import events, platform_jobs
from receiver.platform.reconcile import judge, read_job
from receiver.protocol.platform import Finding
from tests.helpers.http_server import answering
from tests.helpers.line import NOON, body, delivery
from tests.helpers.platform import ACCESS_KEY, REPORT_URL, SECRET_KEY, Request, Stub, failure, job, platform

URL = "https://events.example.com/callbacks/metastudio"
KEY = "0123456789abcdefThis-Is-The-Key"
OURS: dict[str, Any] = {"live_event_callback_config": {"live_event_type_callback_url": URL, "key": KEY}}
ELSEWHERE: dict[str, Any] = {
    "live_event_callback_config": {"live_event_type_callback_url": "https://other.example.com/", "key": KEY}
}
BEGAN: list[datetime] = []  # the test that runs
Reconcile = Callable[..., Result]


@pytest.fixture(autouse=True)
def began() -> None:
    BEGAN[:] = [datetime.now(UTC).replace(microsecond=0)]


def ago(**time: float) -> datetime:
    return BEGAN[0] - timedelta(**time)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with platform() as started:
        started.config = OURS
        yield started


class Receiver:
    """The metrics page of a receiver."""

    events, up, oldest = 0.0, 1.0, float("nan")
    address = ""

    @property
    def page(self) -> bytes:
        values = {
            "journal_events": self.events,
            "database_up": self.up,
            "journal_oldest_timestamp_seconds": self.oldest,
        }
        return "".join(f"metastudio_{name} {value}\n" for name, value in values.items()).encode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    shown = Receiver()

    with answering(lambda *_: shown.page) as url:
        shown.address = url.removeprefix("http://")
        yield shown


@pytest.fixture
def database_environ(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings, for a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return {
        "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": URL,
        "RECEIVER_KEY": KEY,
        "RECEIVER_DATABASE_URL": database_url,
    }


@pytest.fixture
def reconcile(stub: Stub, receiver: Receiver, database: Database, database_environ: dict[str, str]) -> Reconcile:
    """The command; no secret is in what it says, and none in what is stored."""

    def run(*arguments: str) -> Result:
        settings = database_environ | {"RECEIVER_OPERATIONS_LISTEN": receiver.address}
        command = ["reconcile", "--api-endpoint", stub.url, *arguments]
        result = CliRunner().invoke(main, command, env=stub.environ | settings)
        assert "Traceback" not in result.output, result.exception
        stored = str(database.read(select(platform_jobs)))
        for secret in (KEY, REPORT_URL, ACCESS_KEY, SECRET_KEY):
            assert secret not in result.output + stored
        return result

    return run


def store(database: Database, job_id: str, *states: tuple[str, datetime], room_id: str | None = "room1") -> None:
    """Store these states of a job's stream."""
    sent = [
        delivery(body(job_id=job_id, room_id=room_id, state=state, output_url="rtmp://h/a"), at.timestamp() - NOON)
        for state, at in states
    ]
    database.store([to_row(one) for one in sent], [])


def findings(result: Result) -> dict[str, str]:
    """What was found, by job."""
    return {row["job_id"]: row["finding"] for row in json.loads(result.output)["found"]}


def test_all_is_well(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """A job that runs and sends, and one that ended here and there: nothing is found, and what was learned is kept."""
    stub.jobs = [
        job(1, "PROCESSING", ago(hours=1)),
        job(2, "FAILED", ago(hours=3), ago(hours=2), error_info={"error_code": "MSS.1", "error_msg": "推流\0失败"}),
    ]
    store(database, stub.jobs[0]["job_id"], ("CONNECTED", ago(minutes=1)))
    store(database, stub.jobs[1]["job_id"], ("CONNECTED", ago(hours=3)), ("END", ago(hours=2)))
    result = reconcile()
    assert (result.exit_code, result.output) == (0, "Looked at 2 jobs of the platform: 0 lost callbacks.\n")
    first, second = database.read(select(platform_jobs).order_by(platform_jobs.c.job_id))
    assert (first["room_name"], first["state"], first["end_time"]) == ("夏日直播间", "PROCESSING", None)
    assert (second["error_code"], second["error_msg"]) == ("MSS.1", "推流�失败")
    assert (second["end_time"], second["stream_duration"]) == (ago(hours=2), 3600)
    assert len(database.read(select(events))) == 3


def test_an_end_that_never_came(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """A job that ended there and not here is found, with 1, until its END comes after all."""
    stub.jobs = [job(1, "BLOCKED", ago(hours=3), ago(hours=2), block_reason="forbidden words")]
    job_id = stub.jobs[0]["job_id"]
    store(database, job_id, ("CONNECTED", ago(hours=3)))
    result = reconcile()
    assert result.exit_code == 1
    assert f"end_missing  {job_id}  夏日直播间  BLOCKED since {ago(hours=2):%Y-%m-%d %H:%M:%S} UTC:" in result.output
    assert "(forbidden words)" in result.output
    counts, checked_at = platform_findings(database)
    assert counts == dict.fromkeys(Finding, 0) | {"end_missing": 1}
    assert checked_at is not None
    store(database, job_id, ("END", ago(hours=2)))
    assert reconcile().exit_code == 0
    assert platform_findings(database)[0] == dict.fromkeys(Finding, 0)


def test_silence(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """A job that runs there with our URL and of which nothing, or nothing since five minutes, came, is silent."""
    stub.jobs = [job(number, "PROCESSING", ago(hours=1)) for number in range(4)]
    ids = [one["job_id"] for one in stub.jobs]
    stub.jobs[3]["start_time"] = f"{ago(minutes=2):%Y-%m-%dT%H:%M:%SZ}"
    store(database, ids[1], ("CONNECTED", ago(minutes=6)))
    store(database, ids[2], ("CONNECTED", ago(minutes=4)))
    result = reconcile("--json")
    assert result.exit_code == 1
    assert findings(result) == {ids[0]: "silent", ids[1]: "silent"}


def test_where_callbacks_go(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """What goes to another URL, by the job's or the tenant's configuration, is told apart; it is nothing lost here."""
    stub.jobs = [
        job(1, "PROCESSING", ago(hours=1), None, **ELSEWHERE),
        job(2, "PROCESSING", ago(hours=1)),
        job(3, "PROCESSING", ago(hours=1), None, **OURS),
        job(4, "PROCESSING", ago(hours=1), None, **ELSEWHERE),
    ]
    first, second, third, fourth = (one["job_id"] for one in stub.jobs)
    store(database, fourth, ("CONNECTED", ago(minutes=1)))  # so it is ours, whatever is said there
    stub.config = ELSEWHERE
    result = reconcile("--json")
    assert findings(result) == {first: "registered_elsewhere", second: "registered_elsewhere", third: "silent"}
    stub.jobs.pop(2)
    assert reconcile("--json").exit_code == 0
    stub.config = {}  # then of the second nothing is known
    assert findings(reconcile("--json")) == {first: "registered_elsewhere"}


def test_what_the_platform_does_not_know(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """A job that is open here and was deleted there is looked up by its id, and found; what cannot be is left."""
    store(database, "deleted", ("CONNECTED", ago(minutes=1)))
    store(database, "../../other/path", ("CONNECTED", ago(minutes=1)))
    store(database, "without room", ("CONNECTED", ago(minutes=1)), room_id=None)
    result = reconcile("--json")
    assert (result.exit_code, findings(result)) == (0, {"deleted": "unknown_there"})
    assert [one.path for one in stub.requests if "deleted" in one.path] != []


def test_a_job_that_ended_long_ago(stub: Stub, reconcile: Reconcile, database: Database) -> None:
    """One that is open here and too old for the lists is looked up by its id, and not again once it is known."""
    stub.jobs = [job(1, "SUCCEED", ago(days=40), ago(days=39))]
    job_id = stub.jobs[0]["job_id"]
    store(database, job_id, ("CONNECTED", ago(days=40)))
    assert findings(reconcile("--json")) == {job_id: "end_missing"}
    assert reconcile("--json").exit_code == 0
    assert len([one for one in stub.requests if one.path.endswith(job_id)]) == 1


def test_a_job_that_ends_while_it_is_read(stub: Stub, reconcile: Reconcile) -> None:
    """A job that runs in the first list and has ended in the second has ended; its END may still be on its way."""
    stub.jobs = [job(1, "PROCESSING", ago(hours=1))]

    def end(request: Request) -> None:
        if "SUCCEED" in request.query.get("state", ""):
            stub.jobs = [job(1, "SUCCEED", ago(hours=1), ago(seconds=1))]

    stub.before = end
    result = reconcile("--json")
    assert (result.exit_code, json.loads(result.output)["jobs"], findings(result)) == (0, 1, {})


def test_250_jobs(stub: Stub, reconcile: Reconcile) -> None:
    """Three pages of jobs are read, in the order of their creation."""
    stub.jobs = [job(number, "PROCESSING", ago(minutes=4, seconds=-number / 10)) for number in range(250)]
    result = reconcile("--json")
    assert (result.exit_code, json.loads(result.output)["jobs"]) == (0, 250)


@pytest.mark.parametrize("behind", [{"events": 7, "oldest": 1e9}, {"up": 0}])
def test_a_journal_that_is_behind(
    stub: Stub, receiver: Receiver, reconcile: Reconcile, database: Database, behind: dict[str, Any]
) -> None:
    """While events wait to be stored nothing is asked or compared, and it says so: it is no failure."""
    for name, value in behind.items():
        setattr(receiver, name, value)
    result = reconcile()
    assert result.exit_code == 0
    assert result.output.startswith("Skipped, nothing was compared: ")
    assert (stub.requests, platform_findings(database)[1]) == ([], None)
    assert "skipped" in json.loads(reconcile("--json").output)


def test_no_receiver(reconcile: Reconcile, stub: Stub) -> None:
    """Where no receiver answers, nobody knows whether its journal is behind: that fails."""
    result = reconcile("--metrics", "http://127.0.0.1:9/metrics")
    assert (result.exit_code, stub.requests) == (1, [])
    assert "--metrics: http://127.0.0.1:9/metrics does not show" in result.output


def test_no_region(receiver: Receiver, database_environ: dict[str, str]) -> None:
    """A wrong usage is said also while nothing is compared, so that a timer that can never do anything is seen."""
    receiver.up = 0
    command = ["reconcile", "--metrics", f"http://{receiver.address}/metrics"]
    result = CliRunner().invoke(main, command, env=database_environ)
    assert result.exit_code == 2
    assert "--region: name the region" in result.output


def test_no_permission(reconcile: Reconcile, stub: Stub, database: Database) -> None:
    """Without a permission it fails, names it, and stores nothing."""
    stub.before = lambda request: failure(403) if request.path.endswith("/smart-live-jobs") else None
    result = reconcile("--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no permission for ListSmartLiveJobs" in result.stderr
    assert platform_findings(database)[1] is None


def found(shown: dict[str, Any], here: dict[str, Any] | None = None) -> Finding | None:
    return judge(read_job({"job_id": "j"} | shown), here, {URL}, URL, ago())


def test_durations() -> None:
    """A stream that was connected for another time there is reported; a minute, or a twentieth of it, is none."""
    here = {"state": "END", "connected_seconds": 3600.0, "last_event_at": ago(hours=1)}
    ended = {"state": "SUCCEED", "end_time": f"{ago(hours=1).isoformat()}"}
    assert found(ended | {"stream_duration": 3700}, here) is None
    assert found(ended | {"stream_duration": 4000}, here) is Finding.DURATION_GAP
    assert found(ended | {"stream_duration": 100}, here) is Finding.DURATION_GAP
    assert found(ended, here) is None
    assert found(ended | {"stream_duration": 30}, here | {"connected_seconds": 0.0}) is None


def test_a_job_without_a_stream() -> None:
    """A job that failed before it streamed has no END to send; one that succeeded, or streamed, has."""
    ended = {"end_time": f"{ago(hours=1).isoformat()}"}
    assert found(ended | {"state": "FAILED"}) is None
    assert found(ended | {"state": "FAILED", "stream_duration": 0}) is None
    assert found(ended | {"state": "FAILED", "stream_duration": 5}) is Finding.END_MISSING
    assert found(ended | {"state": "SUCCEED"}) is Finding.END_MISSING
    assert found({"state": "WAITING", "start_time": "2020-01-01T00:00:00Z"}) is None
    assert found({"state": "OF_A_NEWER_VERSION", "start_time": "2020-01-01T00:00:00Z"}) is None


def test_jobs_of_another_form(database: Database) -> None:
    """What is not of the published form counts as left out, and each text can be stored."""
    wrong = [5, [], {}, "x", "\ud800", "\0", "9999-12-31T23:59:59-14:00", float("nan"), True, None]
    names = ("room_id", "room_name", "state", "start_time", "end_time", "error_info", "stream_duration", "block_reason")
    for number, one in enumerate(wrong):
        read = read_job(dict.fromkeys(names, one) | {"job_id": f"j{number}", "live_event_callback_config": one})
        assert (read.start_time, read.end_time, read.error_code, read.url) == (None, None, None, None)
        assert read.stream_duration == (5 if number == 0 else None)
        with database.transaction() as connection:
            connection.execute(platform_jobs.insert().values(read.row(None, ago())))
