"""PgBouncer between the receiver and PostgreSQL, with its default configuration, and others in the same pool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import OperationalError

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.errors import problem_of
from receiver.database.schema import events
from tests.helpers.database import sql
from tests.helpers.line import NOON, Line, Logs, body, delivery, migrate, rows, started
from tests.helpers.load import held
from tests.helpers.pgbouncer import pgbouncer
from tests.helpers.postgres import PostgreSQL, new_database
from tests.helpers.receiver import KEY, wait_until

TITLE = "手工紫砂壶 · é"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
# What another client of a pool may leave behind; the pool's mode decides whether it is cleared.
LEFT_BEHIND = {
    "datestyle": "German",
    "timezone": "Asia/Shanghai",
    "client_encoding": "LATIN1",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "1h",
    "lock_timeout": "1h",
    "idle_in_transaction_session_timeout": "1h",
}


def name_of(url: str) -> str:
    return make_url(url).database or ""


@pytest.fixture
def database(postgresql_server: URL) -> Iterator[str]:
    """The URL of an empty database, past the pooler."""
    with new_database(postgresql_server) as url:
        yield url


@pytest.fixture(params=["session", "transaction"])
def pool(request: pytest.FixtureRequest, postgresql_server: URL, database: str) -> Iterator[str]:
    """The URL of the same database through a pool of each mode, as small as can be."""
    # In session mode each client has a connection for as long as it lasts: the worker, and one command beside it.
    size = {"session": 3, "transaction": 1}[request.param]
    options = f"pool_mode={request.param} pool_size={size}"
    with pgbouncer(postgresql_server, {"pool": (name_of(database), options)}) as urls:
        yield urls["pool"]


def another(pool: str) -> AbstractContextManager[psycopg.Connection[Any]]:
    """Another client of the pool."""
    address = make_url(pool).set(drivername="postgresql").render_as_string(hide_password=False)
    return closing(psycopg.connect(address, autocommit=True))


def leave_behind(pool: str) -> None:
    """Be a client that does not tidy up."""
    with another(pool) as client:
        for name, value in LEFT_BEHIND.items():
            client.execute(f"SET {name} = '{value}'".encode())


def shown(pool: str, name: str) -> str:
    """The value that a setting has for another client."""
    with another(pool) as client:
        ((value,),) = client.execute(f"SHOW {name}".encode())
    return str(value)


def receiver(pool: str, *arguments: str) -> str:
    environ = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": pool}
    done = CliRunner().invoke(main, arguments, env=environ, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_all_that_the_receiver_does(
    pool: str, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The schema is made, events are stored, read, tried again, copied and deleted through the pool without error."""
    logs = Logs(caplog, capfd)
    leave_behind(pool)
    assert "it was None" in receiver(pool, "migrate")
    with started(tmp_path, pool) as line:
        for at in range(5):
            leave_behind(pool)
            line.put(delivery(body("SHOOT_SCRIPT_SWITCH", shoot_script_title=TITLE), at))
            line.drain()
        line.put(delivery(b"nonsense\xff\0", 5), delivery(body(state="END"), 6, quarantine_reason="stale"))
        line.drain()
        leave_behind(pool)
        assert "1 moved to the events, 1 left" in receiver(pool, "quarantine", "retry", "--stale")
        leave_behind(pool)
        assert "already" in receiver(pool, "migrate")
        leave_behind(pool)
        (job,) = json.loads(receiver(pool, "history", "--json"))
        assert job["first_event_at"] == "2024-09-11T00:00:00Z"
        timeline = receiver(pool, "history", "job", "--csv").splitlines()
        assert timeline[1].startswith("2024-09-11T00:00:00Z,")
        assert TITLE in timeline[1]
        assert_no_errors(line)
    assert [row["shoot_script_title"] for row in rows(database, events)[:5]] == [TITLE] * 5
    assert (logs.worker, logs.own) == ([], [])

    other = f"sqlite:///{tmp_path}/copied.db"
    migrate(other)
    leave_behind(pool)
    assert "Copied 6 events and 1 quarantined" in receiver(other, "copy", "--from", pool)
    leave_behind(pool)
    days = (datetime.now(UTC) - datetime.fromtimestamp(NOON, UTC) - timedelta(days=1)).days
    assert "Deleted 6 events, 1 quarantined, 1 streams" in receiver(pool, "prune", "--older-than", f"{days}d")
    leave_behind(pool)
    assert "Copied 6 events and 1 quarantined" in receiver(pool, "copy", "--from", other)
    assert [row["sent_at"].timestamp() for row in rows(database, events)[:5]] == [NOON + at for at in range(5)]


def assert_no_errors(line: Line) -> None:
    assert line.metric("database_up") == 1
    for reason in ("connection", "schema", "refused", "other"):
        assert line.metric("projector_errors_total", reason=reason) == 0


IN_FORCE = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
    "timezone": "UTC",
    "datestyle": "ISO",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "search_path": '"$user", public',
    "application_name": "metastudio-receiver",
    "jit": "off",
}


def test_what_is_in_force(pool: str) -> None:
    """In each transaction the receiver's own settings are in force, whatever another client has left behind."""
    with closing(Database(pool)) as database:
        for _ in range(2):
            leave_behind(pool)
            with database.transaction() as connection:
                found = {name: connection.scalar(text(f"SHOW {name}")) for name in IN_FORCE}
            found["datestyle"] = found["datestyle"].partition(",")[0]
            assert found == IN_FORCE
    # Nor is anything of it left to others.
    assert shown(pool, "statement_timeout") in ("0", LEFT_BEHIND["statement_timeout"])


def test_deadline(pool: str, database: str) -> None:
    """A statement that waits for another's lock ends in time; the URL's own `options` say in which."""
    migrate(database)
    short = f"{pool}?options=-c%20lock_timeout%3D300ms"
    with closing(Database(short)) as own, held(database):
        leave_behind(pool)
        with pytest.raises(OperationalError) as caught, own.transaction() as connection:
            connection.execute(text("LOCK TABLE events IN SHARE MODE"))
        assert "lock timeout" in problem_of(caught.value)


def test_statements_are_not_prepared(pool: str, database: str) -> None:
    """A statement that was used often works in the next session too, of which the pooler says nothing."""
    migrate(database)

    def end_sessions() -> list[Any]:
        where = "datname = current_database() AND pid <> pg_backend_pid()"
        return sql(database, f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {where}")

    with closing(Database(pool)) as own:
        for _ in range(10):
            own.stream_states(LONG_AGO)
        leave_behind(pool)
        if shown(pool, "lock_timeout") == LEFT_BEHIND["lock_timeout"]:  # the pool's mode is `transaction`
            assert end_sessions()
            wait_until(lambda: tried(own), "another session")
        for _ in range(10):
            own.stream_states(LONG_AGO)
        assert own.connections == 1


def test_another_server_behind_the_pooler(own_postgresql: PostgreSQL) -> None:
    """A server that takes over between two transactions, while the pooler keeps the connection, counts as a new one."""
    with (
        new_database(own_postgresql.url) as url,
        pgbouncer(own_postgresql.url, {"pool": (name_of(url), "pool_mode=transaction")}) as urls,
        closing(Database(urls["pool"])) as own,
    ):
        migrate(url)
        for _ in range(2):
            own.stream_states(LONG_AGO)
        assert own.connections == 1
        with own_postgresql.stopped():
            pass
        wait_until(lambda: tried(own), "another session")
        assert own.connections == 2


def tried(database: Database) -> bool:
    """Whether the pooler has noticed that its session is gone."""
    with suppress(OperationalError):
        database.stream_states(LONG_AGO)
        return True
    return False
