"""What was stored is offered to the database again after an outage: a failover may have lost it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from receiver.database.database import Database
from receiver.database.quarantine import retry
from receiver.database.schema import events, quarantine, streams
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.line import Line, body, delivery, laid, migrate, rows, started
from tests.helpers.postgres import PostgreSQL, new_database
from tests.helpers.receiver import wait_until

EVENT = "RTMP_STREAM_STATE_CHANGE"
LONG = 3600


def numbered(first: int, last: int, state: str = "CONNECTED") -> list[Delivery]:
    return [delivery(body(state=state, job_id=f"job-{at}"), at) for at in range(first, last)]


def stored(url: str) -> list[str]:
    """The jobs of all events, in the order of the times."""
    return [row["job_id"] for row in rows(url, events)]


def jobs(first: int, last: int) -> list[str]:
    return [f"job-{at}" for at in range(first, last)]


@contextmanager
def cut_off(line: Line, server: PostgreSQL) -> Iterator[None]:
    """Keep the worker from the database, and break its connection."""
    wait_until(lambda: line.metric("database_up") == 1, "a database")
    os.kill(line.worker, signal.SIGSTOP)
    name = make_url(line.url).database
    admin = server.url.render_as_string(hide_password=False)
    sql(admin, f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{name}'")
    yield
    os.kill(line.worker, signal.SIGCONT)


def run_alone(server: PostgreSQL, *statements: str) -> None:
    """Run what PostgreSQL does in no transaction."""
    from sqlalchemy import create_engine  # noqa: PLC0415

    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize("keep", [LONG, 0])
def test_failover_to_a_replica_that_is_behind(own_postgresql: PostgreSQL, tmp_path: Path, keep: int) -> None:
    """What a failover has lost is stored again from what was kept, and counted; without keeping it is lost."""
    with new_database(own_postgresql.url) as url:
        migrate(url)
        primary = make_url(url).database
        with started(tmp_path, url, keep) as line:
            line.put_each(*numbered(0, 10))
            line.put(delivery(b"nonsense", 10))
            line.drain()
            with cut_off(line, own_postgresql):
                run_alone(own_postgresql, f"CREATE DATABASE {primary}_replica TEMPLATE {primary}")
            line.put_each(*numbered(11, 30, "END"))
            line.put(delivery(b"more nonsense", 30))
            line.drain()
            before = [rows(url, table) for table in (events, quarantine, streams)]
            with cut_off(line, own_postgresql):
                # The failover: what was stored since the replica's state is gone.
                run_alone(
                    own_postgresql,
                    f"DROP DATABASE {primary}",
                    f"ALTER DATABASE {primary}_replica RENAME TO {primary}",
                )
                line.put_each(*numbered(31, 35))
            line.drain()
            if keep:
                wait_until(lambda: line.metric("events_restored_total") == 20, "what was lost")
                line.settle()
                assert stored(url) == jobs(0, 10) + jobs(11, 30) + jobs(31, 35)
                after = [rows(url, table) for table in (events, quarantine, streams)]
                for old, new in zip(before, after, strict=True):
                    unnumbered = [{key: value for key, value in row.items() if key != "id"} for row in new]
                    assert all({key: row[key] for key in row if key != "id"} in unnumbered for row in old)
                assert line.outcomes(EVENT) == {"stored": 33 + 19}
                assert line.outcomes() == {"quarantined": 3}
            else:
                assert stored(url) == jobs(0, 10) + jobs(31, 35)
                assert line.metric("events_restored_total") == 0


def test_outage_that_has_lost_nothing(own_postgresql: PostgreSQL, tmp_path: Path) -> None:
    """What is offered again and is there already counts as nothing; repeats that the sender makes still do."""
    with new_database(own_postgresql.url) as url:
        migrate(url)
        with started(tmp_path, url, LONG) as line:
            line.put_each(*numbered(0, 10))
            line.drain()
            with cut_off(line, own_postgresql):
                line.put(*numbered(9, 12))
            line.settle()
            assert line.outcomes(EVENT) == {"stored": 12, "duplicate": 1}
            assert line.metric("events_restored_total") == 0
            assert line.metric("stream_transitions_total", state="CONNECTED") == 12


def test_what_was_moved_out_of_quarantine_stays_out(database_url: str, database: Database, tmp_path: Path) -> None:
    """What an operator has moved to the events does not come back into quarantine when it is offered again."""
    migrate(database_url)
    with started(tmp_path, database_url, LONG) as line:
        stale = [delivery(body(state="END"), at, quarantine_reason="stale") for at in range(3)]
        line.put(*stale, delivery(b"nonsense", 3), delivery(body(state="END"), 4))
        line.settle()
        assert retry(database, stale=True).moved == 3
        sql(database_url, "DELETE FROM quarantine")  # as a failover might
        sql(database_url, "DELETE FROM events WHERE sent_at = (SELECT max(sent_at) FROM events)")
        os.kill(line.worker, signal.SIGKILL)
        wait_until(lambda: line.metric("events_restored_total") >= 2, "what was lost")
        line.settle()
        assert line.metric("events_restored_total") == 2
    assert [row["reason"] for row in rows(database_url, quarantine)] == ["not_json"]
    assert len(rows(database_url, events)) == 4


def test_kept_of_another_run(database_url: str, tmp_path: Path) -> None:
    """What an earlier run has kept is offered once more, and waits for nothing: it may have ended in an outage."""
    migrate(database_url)
    with started(tmp_path, database_url, LONG) as line:
        line.put_each(*numbered(0, 10))
        line.drain()
        line.stop()
    sql(database_url, "DELETE FROM events WHERE job_id = 'job-7'")
    with laid(tmp_path, database_url, LONG) as line:
        assert line.metric("journal_events") == 0
        line.start()
        wait_until(lambda: line.metric("events_restored_total") == 1, "what was lost")
        assert line.outcomes(EVENT) == {"stored": 1}
    assert stored(database_url) == jobs(0, 10)


def test_worker_that_was_killed(database_url: str, tmp_path: Path) -> None:
    """A worker that is started again offers what was kept, too."""
    migrate(database_url)
    with started(tmp_path, database_url, LONG) as line:
        line.put_each(*numbered(0, 10))
        line.settle()
        sql(database_url, "DELETE FROM events WHERE job_id = 'job-7'")
        os.kill(line.worker, signal.SIGKILL)
        wait_until(lambda: line.metric("events_restored_total") == 1, "what was lost")
    assert stored(database_url) == jobs(0, 10)


def test_new_ones_do_not_wait(own_postgresql: PostgreSQL, tmp_path: Path) -> None:
    """While much is offered again, what comes is stored before the rest of it."""
    count = 20_000
    with new_database(own_postgresql.url) as url:
        migrate(url)
        with started(tmp_path, url, LONG) as line:
            for first in range(0, count, 500):
                line.put(*numbered(first, first + 500))
            line.drain()
            with cut_off(line, own_postgresql):
                sql(url, "TRUNCATE events")
            wait_until(lambda: line.metric("events_restored_total") > 0, "the first that is restored")
            line.put(*numbered(count, count + 1))
            wait_until(lambda: line.metric("events_restored_total") == count, "all that was lost")
            line.drain()
        # Ids are given in the order in which rows are stored.
        ids = {row["job_id"]: row["id"] for row in rows(url, events)}
        assert len(ids) == count + 1
        assert ids[f"job-{count}"] < max(ids.values())


def test_nothing_expires_during_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long an outage lasts, what was stored before it is still offered afterwards; then it goes."""
    monkeypatch.setattr("receiver.projector.feeder._TIDY_EVERY", 0.05)
    now = [0.0]
    there = tmp_path / "receiver.db"
    link = tmp_path / "link.db"
    migrate(f"sqlite:///{there}")
    link.symlink_to(there)
    with started(tmp_path, f"sqlite:///{link}", LONG, clock=lambda: now[0]) as line:
        line.put_each(*numbered(0, 3))
        line.drain()
        wait_until(lambda: line.metric("database_up") == 1, "what was stored, offered to a new database")
        line.settle()
        now[0] += LONG / 2
        line.run(line.journal.remove_expired())  # which notes what was stored by now
        link.unlink()
        link.mkdir()
        os.kill(line.worker, signal.SIGKILL)
        wait_until(lambda: line.metric("projector_errors_total", reason="connection") >= 2, "attempts")
        now[0] += 2 * LONG
        said = line.metric("projector_errors_total", reason="connection")
        wait_until(lambda: line.metric("projector_errors_total", reason="connection") >= said + 2, "further attempts")
        sql(f"sqlite:///{there}", "DELETE FROM events WHERE job_id = 'job-1'")
        link.rmdir()
        link.symlink_to(there)
        wait_until(lambda: line.metric("database_up") == 1, "the database")
        line.settle()
        assert line.metric("events_restored_total") == 1
        now[0] += 2 * LONG
        wait_until(lambda: line.run(line.journal.read_kept(0, 10)) == [], "a removal")
    assert stored(f"sqlite:///{there}") == jobs(0, 3)
