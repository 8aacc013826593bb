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
from receiver.database.rows import quarantine_row, to_row
from receiver.database.schema import events, quarantine, streams
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.load import event_body, state_body
from tests.helpers.receiver import KEY

BEGAN = datetime(2026, 9, 11, tzinfo=UTC)
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
    """Store events of all kinds, many of them at one time, and a quarantine; then delete some of the events."""
    rows = []
    for number in range(count):
        body = event_body("many", number) if number % 2 else state_body("jobs", number)
        at = BEGAN.timestamp() + number // 300
        rows.append(Delivery("default", at + number / 1e6, at, b"%d" % number, body))
    doubtful = [Delivery("other", one.received_at, one.sent_at, one.digest, b"\xff\0" + one.body) for one in rows[::7]]
    with closing(Database(url)) as database:
        database.store([to_row(one) for one in rows], [quarantine_row(one, "not_utf8") for one in doubtful])
    sql(url, delete(events).where(events.c.sent_at < BEGAN + timedelta(seconds=1)))


def held_by(url: str) -> Rows:
    """All that a database holds, without the rows' ids."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return {
                table.name: [
                    {name: value for name, value in row.items() if name != "id"}
                    for row in connection.execute(select(table).order_by(*key)).mappings()
                ]
                for table, key in (
                    (events, (events.c.sent_at, events.c.digest)),
                    (quarantine, (quarantine.c.sent_at, quarantine.c.digest)),
                    (streams, (streams.c.job_id,)),
                )
            }
    finally:
        engine.dispose()


def run(source: str, target: str) -> Result:
    environ = {"RECEIVER_DATABASE_URL": target, "RECEIVER_KEY": KEY, "RECEIVER_CONFIG": os.devnull}
    return CliRunner().invoke(main, ["copy", "--from", source], env=environ)


def copied(source: str, target: str) -> str:
    """The last line that it prints when it is done."""
    result = run(source, target)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def test_all_of_it_and_once(urls: tuple[str, str]) -> None:
    """Every row comes over as it is, a pruned job's state too; a second time there is nothing new."""
    source, target = urls
    fill(source, 1500)
    held = held_by(source)
    assert [len(rows) for rows in held.values()] == [1200, 215, 257]
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
