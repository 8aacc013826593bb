"""What is set for a role or a database on the server, and what the receiver makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import URL, make_url, text

from receiver.cli import main
from receiver.database.database import Database
from receiver.database.migration import SchemaError
from receiver.database.rows import to_row
from tests.helpers.database import sql
from tests.helpers.line import NOON, Logs, body, delivery, migrate, started
from tests.helpers.postgres import new_database
from tests.helpers.receiver import KEY, wait_until

TITLE = r"手工紫砂壶 \ 'é' \u0041"
DEFAULTS = {
    "datestyle": "'German, DMY'",
    "timezone": "'Asia/Shanghai'",
    "client_encoding": "'LATIN1'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "statement_timeout": "'1s'",
    "transaction_timeout": "'1s'",
    "search_path": "own, public",
}

IN_FORCE = {
    "statement_timeout": "10000",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "10000",
    "transaction_timeout": "0",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
    "standard_conforming_strings": "on",
    "datestyle": "ISO",
    "timezone": "UTC",
}


def command(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": url})


def name_of(url: str) -> str:
    return make_url(url).database or ""


@pytest.mark.parametrize("setting", DEFAULTS)
def test_defaults_do_not_matter(postgresql_url: str, setting: str) -> None:
    """Whatever is set for the database, the schema is made, and an event comes back as it was sent, at its time."""
    if not sql(postgresql_url, f"SELECT 1 FROM pg_settings WHERE lower(name) = '{setting}'"):
        return  # an older server has no such setting
    sql(postgresql_url, "CREATE SCHEMA own")
    sql(postgresql_url, f"ALTER DATABASE {name_of(postgresql_url)} SET {setting} = {DEFAULTS[setting]}")
    row = to_row(delivery(body("SHOOT_SCRIPT_SWITCH", shoot_script_title=TITLE)))
    quarantined = to_row(delivery(bytes(range(256))))
    with closing(Database(postgresql_url)) as database:
        database.migrate()
        stored = database.store([row], [quarantined])
        assert stored.events == {(datetime.fromtimestamp(NOON, UTC), row["digest"])}
        (found,) = database.job("job")
        assert {name: found[name] for name in row} == row
        assert found["sent_at"].utcoffset() == timedelta(0)
        assert database.quarantined(limit=1)[0]["body"] == quarantined["body"]
        with database.transaction() as connection:
            rows = connection.execute(text("SELECT name, setting FROM pg_settings"))
            shown = {name.lower(): value.partition(",")[0] for name, value in rows if name.lower() in IN_FORCE}
        assert shown == {name: value for name, value in IN_FORCE.items() if name in shown}
    (job,) = json.loads(command(postgresql_url, "history", "--json").stdout)
    assert job["first_event_at"] == "2024-09-11T00:00:00Z"
    line = command(postgresql_url, "history", "job", "--csv").stdout.splitlines()[1]
    assert line.startswith("2024-09-11T00:00:00Z,")
    assert TITLE in line


def test_schema_of_the_role(postgresql_url: str) -> None:
    """The tables are made in the schema that the role's or the URL's search_path names first."""
    sql(postgresql_url, "CREATE SCHEMA own")
    migrate(f"{postgresql_url}&options=-csearch_path%3Down")
    where = "SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'"
    assert sql(postgresql_url, where) == [{"schemaname": "own"}]
    with closing(Database(postgresql_url)) as database, pytest.raises(SchemaError, match="is missing"):
        database.check_schema()
    sql(postgresql_url, f"ALTER DATABASE {name_of(postgresql_url)} SET search_path = own")
    with closing(Database(postgresql_url)) as database:
        database.check_schema()


def refusals(url: str) -> Iterator[str]:
    """What the commands say of a database that they cannot use."""
    for arguments in (["migrate"], ["doctor", "--database"]):
        done = command(url, *arguments)
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        yield line


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_database_that_is_not_utf8(
    postgresql_server: URL,
    encoding: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A database that cannot hold each text is refused by the commands and in the log, with the remedy, in one line."""
    with new_database(postgresql_server, f"TEMPLATE template0 ENCODING {encoding} LOCALE 'C'") as url:
        for line in refusals(url):
            assert f"encoding is {encoding}" in line
            assert "ENCODING 'UTF8' TEMPLATE template0" in line
        capfd.readouterr()
        logs = Logs(caplog, capfd)
        with started(tmp_path, url) as serving:
            serving.put(delivery(body(state="CONNECTED")))
            wait_until(lambda: serving.metric("projector_errors_total", reason="schema") >= 2, "attempts")
            assert serving.metric("journal_events") == 1
        (said,) = logs.worker
        assert (said["event"], said["reason"]) == ("database down", "schema")
        assert "ENCODING 'UTF8' TEMPLATE template0" in said["problem"]


def test_no_schema(postgresql_url: str) -> None:
    """A search_path that leads nowhere is named."""
    sql(postgresql_url, f"ALTER DATABASE {name_of(postgresql_url)} SET search_path = ''")
    for line in refusals(postgresql_url):
        assert "search_path" in line


@pytest.mark.parametrize("revision", ["1975ea83b712", "0002", "9999", "abcd"])
def test_alembic_version_of_another_application(postgresql_url: str, revision: str) -> None:
    """Where another application's migrations have been here, its database is left alone, and not called newer."""
    sql(postgresql_url, "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    sql(postgresql_url, f"INSERT INTO alembic_version VALUES ('{revision}')")
    for line in refusals(postgresql_url):
        assert "another application's" in line
        assert "newer" not in line
    assert sql(postgresql_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [
        {"tablename": "alembic_version"}
    ]


def test_doctor_of_a_database(postgresql_url: str, tmp_path: Path) -> None:
    """`receiver doctor --database` says what is missing, and then that the database can be used."""
    missing = command(postgresql_url, "doctor", "--database")
    assert (missing.exit_code, "run `receiver migrate`" in missing.stderr) == (1, True)
    migrate(postgresql_url)
    done = command(postgresql_url, "doctor", "--database")
    assert (done.exit_code, done.stdout.startswith("the database can be used: postgresql+psycopg://")) == (0, True)
    assert command(f"sqlite:///{tmp_path}/none.db", "doctor", "--database").exit_code == 1


def test_alembic_version_that_another_application_has_set(postgresql_url: str) -> None:
    """Nor is it called newer where the receiver's tables are in the same schema."""
    migrate(postgresql_url)
    sql(postgresql_url, "UPDATE alembic_version SET version_num = 'f975ea83b712'")
    for line in refusals(postgresql_url):
        assert "another application's" in line
