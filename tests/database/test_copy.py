"""`receiver copy`: what one database holds comes into another, whole, once, and beside running receivers."""

from __future__ import annotations

import itertools
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, delete, select, text

from receiver.cli import main
from receiver.database.copy import copy
from receiver.database.database import Database
from receiver.database.platform import save_platform_jobs
from receiver.database.rows import quarantine_row, to_row
from receiver.database.schema import events, metadata, platform_check, platform_jobs
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.load import event_body, state_body
from tests.helpers.receiver import KEY

BEGAN = datetime(2026, 9, 11, tzinfo=UTC)
# The events' trigger makes the one, and the other is a setting of each database's receivers.
NOT_COPIED = {"jobs", "stale_after"}
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URLs of two migrated databases."""
    given = {"sqlite": f"sqlite:///{tmp_path}/receiver.db", "postgresql": request.getfixturevalue("postgresql_url")}
    source, target = [given[kind] for kind in request.param.split(" to ")]
    for url in (source, target):
        with closing(Database(url)) as database:
            database.migrate()
    return source, target


def fill(url: str, count: int) -> None:
    """Fill each table: events of all kinds, many of them at one time, some of which are then deleted."""
    rows = []
    for number in range(count):
        body = event_body("many", number) if number % 2 else state_body("jobs", number)
        at = BEGAN.timestamp() + number // 300
        rows.append(Delivery("default", at + number / 1e6, at, b"%d" % number, body))
    doubtful = [Delivery("other", one.received_at, one.sent_at, one.digest, b"\xff\0" + one.body) for one in rows[::7]]
    with closing(Database(url)) as database:
        database.store([to_row(one) for one in rows], [quarantine_row(one, "not_utf8") for one in doubtful])
        save_platform_jobs(database, [there(f"job{number}", BEGAN) for number in range(250)], BEGAN)
    sql(url, delete(events).where(events.c.sent_at < BEGAN + timedelta(seconds=1)))


def there(job_id: str, checked_at: datetime, **fields: Any) -> dict[str, Any]:
    """A row of `platform_jobs`."""
    nothing: dict[str, Any] = dict.fromkeys(column.name for column in platform_jobs.columns)
    return nothing | {"job_id": job_id, "room_name": "夏日直播间", "checked_at": checked_at} | fields


def held_by(url: str) -> Rows:
    """All that a database holds, without the rows' ids, and without what is not copied."""
    return {
        name: sorted(
            ({column: value for column, value in row.items() if column != "id"} for row in sql(url, select(table))),
            key=repr,
        )
        for name, table in metadata.tables.items()
        if name not in NOT_COPIED
    }


def run(source: str, target: str) -> Result:
    environ = {"RECEIVER_DATABASE_URL": target, "RECEIVER_KEY": KEY, "RECEIVER_CONFIG": os.devnull}
    return CliRunner().invoke(main, ["copy", "--from", source], env=environ)


def copied(source: str, target: str) -> str:
    """The last line that it prints when it is done."""
    result = run(source, target)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def test_all_of_it_and_once(urls: tuple[str, str]) -> None:
    """Every row of every table comes over as it is, a pruned job's state too; a second time there is nothing new."""
    source, target = urls
    fill(source, 1500)
    held = held_by(source)
    assert {name: len(rows) for name, rows in held.items()} == {
        "events": 1200,
        "quarantine": 215,
        "streams": 257,
        "platform_jobs": 250,
        "platform_check": 1,
    }
    assert copied(source, target) == "Copied 1200 events and 215 quarantined that were not there yet."
    assert held_by(target) == held
    assert copied(source, target) == "Copied 0 events and 0 quarantined that were not there yet."
    assert held_by(target) == held == held_by(source)


def test_broken_off(urls: tuple[str, str]) -> None:
    """After it was broken off, it does the rest."""
    source, target = urls
    fill(source, 1500)
    with closing(Database(source)) as one, closing(Database(target)) as other:
        done = sum(batch.events for batch in itertools.islice(copy(one, other), 3))
    assert 0 < done < 1200
    assert copied(source, target) == f"Copied {1200 - done} events and 215 quarantined that were not there yet."
    assert held_by(target) == held_by(source)


def test_newer_state_stays(urls: tuple[str, str]) -> None:
    """A state that the target has and that is newer is not set back."""
    source, target = urls
    bodies = {0: state_body("jobs", 7), 1: state_body("jobs", 14)}  # of one job
    for url, seconds in ((source, 0), (target, 1)):
        at = BEGAN.timestamp() + seconds
        with closing(Database(url)) as database:
            database.store([to_row(Delivery("default", at, at, b"%d" % seconds, bodies[seconds]))], [])
    newest = held_by(target)["streams"]
    copied(source, target)
    assert held_by(target)["streams"] == newest
    assert len(held_by(target)["events"]) == 2


def test_newer_of_the_platform_stays(urls: tuple[str, str]) -> None:
    """Of what the platform said of a job the newer stays, wherever it is; so does when it was asked."""
    source, target = urls
    later = BEGAN + timedelta(hours=1)
    with closing(Database(source)) as database:
        save_platform_jobs(database, [there("one", BEGAN, state="PROCESSING"), there("two", BEGAN)], BEGAN)
        save_platform_jobs(database, [there("three", BEGAN, state="SUCCEED")], BEGAN)
    with closing(Database(target)) as database:
        save_platform_jobs(database, [there("three", BEGAN - timedelta(hours=1), error_code="known")], BEGAN)
        save_platform_jobs(database, [there("one", later, state="SUCCEED", finding="end_missing")], later)
    copied(source, target)
    assert {row["job_id"]: (row["state"], row["error_code"]) for row in held_by(target)["platform_jobs"]} == {
        "one": ("SUCCEED", None),
        "two": (None, None),
        "three": ("SUCCEED", "known"),
    }
    assert sql(target, select(platform_check)) == [{"checked_at": later}]
    copied(target, source)
    assert {row["job_id"]: row["state"] for row in held_by(source)["platform_jobs"]}["one"] == "SUCCEED"
    assert sql(source, select(platform_check)) == [{"checked_at": later}]


def test_refused_event(urls: tuple[str, str]) -> None:
    """An event that the target refuses goes to its quarantine with its exact bytes, the others to the events."""
    source, target = urls
    fill(source, 900)
    held = held_by(source)
    refused = held["events"][10]
    digest = refused["digest"].hex()
    engine = create_engine(target)
    with engine.begin() as connection:
        if target.startswith("sqlite"):
            rule = f"""CREATE TRIGGER rule BEFORE INSERT ON events WHEN NEW.digest = x'{digest}'
                BEGIN SELECT RAISE(ABORT, 'no'); END"""
        else:
            rule = f"ALTER TABLE events ADD CHECK (digest <> decode('{digest}', 'hex'))"
        connection.execute(text(rule))
    engine.dispose()
    assert copied(source, target) == "Copied 599 events and 130 quarantined that were not there yet."
    found = held_by(target)
    assert found["events"] == [row for row in held["events"] if row != refused]
    (kept,) = [row for row in found["quarantine"] if row["reason"] == "refused"]
    assert (kept["digest"], kept["sent_at"], kept["body"]) == (
        refused["digest"],
        refused["sent_at"],
        refused["body"].encode(),
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("sqlite:///nowhere.db", "nowhere.db is no file"),
        ("mysql://a/b", "neither sqlite:///"),
        ("", "is empty"),
    ],
)
def test_wrong_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str) -> None:
    """What is no database is a wrong usage that names the option, and no file is made."""
    monkeypatch.chdir(tmp_path)
    result = run(source, "sqlite:///receiver.db")
    assert result.exit_code == 2
    assert "--from" in result.output
    assert problem in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["source", "target"])
def test_schema_is_missing(tmp_path: Path, missing: str) -> None:
    """Where either database is not migrated, it says which command to run, and copies nothing."""
    paths = {"source": tmp_path / "source.db", "target": tmp_path / "target.db"}
    for path in paths.values():
        path.touch()
        with closing(Database(f"sqlite:///{path}")) as database:
            if path != paths[missing]:
                database.migrate()
    result = run(f"sqlite:///{paths['source']}", f"sqlite:///{paths['target']}")
    assert result.exit_code == 1
    assert "receiver migrate" in result.output
