"""deploy/postgres: what the owner, the store and the reader may, on the oldest and the newest PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from sqlalchemy import URL
from sqlalchemy.exc import ProgrammingError

from receiver.cli import main
from receiver.database import schema
from receiver.database.copy import copy
from receiver.database.database import Database
from receiver.database.prune import Age, delete_older
from receiver.database.quarantine import retry
from tests.helpers.database import sql
from tests.helpers.debian_postgres import DebianPostgreSQL
from tests.helpers.pages import ROOT, blocks
from tests.helpers.postgres import PostgreSQL, PrivatePostgreSQL
from tests.helpers.receiver import KEY, SAMPLES, running, wait_until
from tests.helpers.shell import run

FOLDER = ROOT / "deploy/postgres"
JOB = "e87104f76d7546ce8a46ac6b04c49c3c"
DONE = "the roles have what they need, and the reader cannot get at a body or a stream key"
FAILED = 3  # psql's exit code for an error in a script


class Site(NamedTuple):
    """A database with the three roles, and the schema in which the tables are."""

    database: URL
    schema: str

    def url(self, role: str) -> str:
        return self.database.set(username=role).render_as_string(hide_password=False)

    def psql(self, role: str, *arguments: str | Path, exit_code: int = 0, **variables: str) -> str:
        """What psql says, which must end with `exit_code`."""
        url = self.url(role).replace("postgresql+psycopg", "postgresql")
        words = ["psql", "--quiet", "--no-psqlrc", f"--set=schema={self.schema}", *arguments, url]
        done = subprocess.run(
            words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | variables
        )
        assert done.returncode == exit_code, done.stdout
        return done.stdout

    def roles(self, role: str, *options: str, exit_code: int = 0, **variables: str) -> str:
        """What roles.sql says."""
        return self.psql(role, *options, "--file", FOLDER / "roles.sql", exit_code=exit_code, **variables)


def migrate(url: str) -> None:
    with closing(Database(url)) as database:
        database.migrate()


@pytest.fixture(scope="module", params=["18", "15"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """A server whose roles no other test sees."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        started = PrivatePostgreSQL(Path(folder)) if request.param == "18" else DebianPostgreSQL(Path(folder))
        started.start()
        yield started
        started.stop()


@pytest.fixture(scope="module")
def site(server: PostgreSQL) -> Site:
    """Set up as roles.sql says: as a superuser, then by `receiver migrate`, then as the owner."""
    is_newest = isinstance(server, PrivatePostgreSQL) and not isinstance(server, DebianPostgreSQL)
    Site(server.url, "").psql("postgres", "--command=CREATE DATABASE events TEMPLATE template0 ENCODING 'UTF8'")
    made = Site(server.url.set(database="events"), "public" if is_newest else "Live events")
    made.roles(
        "postgres",
        METASTUDIO_OWNER_PASSWORD="the 'owner's",
        METASTUDIO_STORE_PASSWORD="the store's",
        METASTUDIO_READER_PASSWORD="the reader's",
    )
    migrate(made.url("metastudio"))
    made.roles("metastudio")
    return made


def test_passwords(site: Site) -> None:
    """The passwords are those of the environment, and none is left out."""
    rows = sql(site.url("postgres"), "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$%'")
    assert {row["rolname"] for row in rows} == {"metastudio", "metastudio_store", "metastudio_reader"}


def test_serve_stores_as_the_store(site: Site, tmp_path: Path) -> None:
    """A receiver stores events, quarantine, jobs and streams with no other right than the store's."""
    with running(tmp_path, RECEIVER_DATABASE_URL=site.url("metastudio_store"), RECEIVER_STATUS_PAGE="true") as receiver:
        for body in SAMPLES.values():
            assert receiver.post(body).status == 200
        assert receiver.post(SAMPLES["RTMP_STREAM_STATE_CHANGE"].replace(b"CONNECTED", b"END")).status == 200
        assert receiver.post(b"not JSON").status == 200
        assert receiver.post(b"not JSON").status == 200
        wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
        assert receiver.metric("database_up") == 1
        assert receiver.operations("/readyz").status == 200
        wait_until(lambda: receiver.metric("streams", "END") == 1, "the streams' states")
        assert " events of job " in run("receiver simulate", tmp_path, receiver.environ)
        assert "database down" not in receiver.log
        assert f'href="/jobs/{JOB}"' in receiver.operations("/").body.decode()
        assert receiver.operations(f"/jobs/{JOB}").status == 200
    owner, of_job = site.url("metastudio"), f"WHERE job_id = '{JOB}'"
    assert sql(owner, f"SELECT events, state FROM live_jobs {of_job}") == [{"events": 4, "state": "END"}]
    assert sql(owner, f"SELECT state FROM streams {of_job}") == [{"state": "END"}]
    assert {row["body"] for row in sql(owner, "SELECT body FROM quarantine")} == {b"not JSON"}


def test_doctor_knows_who_may_store(site: Site) -> None:
    """The owner and the store can be the receiver's role, the reader cannot, and is told so."""
    for role, exit_code in (("metastudio", 0), ("metastudio_store", 0), ("metastudio_reader", 1)):
        environ = {"RECEIVER_DATABASE_URL": site.url(role), "RECEIVER_KEY": KEY}
        done = CliRunner().invoke(main, ["doctor", "--database"], env=environ)
        assert done.exit_code == exit_code, done.output
        assert ("the role may not store events" in done.output) == (exit_code == 1)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT body FROM events",
        "SELECT stream_key FROM events",
        "SELECT * FROM events",
        "SELECT body FROM quarantine",
        "UPDATE events SET state = 'END'",
        "DELETE FROM events",
        "DELETE FROM quarantine",
        "DELETE FROM streams",
        "TRUNCATE jobs",
        "UPDATE alembic_version SET version_num = '9999'",
        "CREATE TABLE mine (id integer)",
        "ALTER TABLE events ADD mine integer",
        "DROP VIEW live_jobs",
        "CREATE ROLE mine",
    ],
)
def test_store_is_refused(site: Site, statement: str) -> None:
    """The store reads no secret, and deletes, changes and makes nothing."""
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        sql(site.url("metastudio_store"), statement)


def test_owner_does_the_rest(site: Site) -> None:
    """Prune, quarantine and copy are the owner's, who is no superuser and makes no roles."""
    owner = site.url("metastudio")
    sql(
        site.url("metastudio_store"),
        "INSERT INTO quarantine (received_at, endpoint, sent_at, reason, digest, body)"
        " VALUES (now(), 'default', now(), 'refused', 'digest', convert_to('not JSON', 'UTF8'))",
    )
    with closing(Database(owner)) as database:
        assert retry(database, stale=True).left > 0
        assert sum(copied.rows for copied in copy(database, database)) > 0
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert sum(deleted for _, deleted in delete_older(database, Age(tomorrow, tomorrow))) > 0
        assert database.quarantined(limit=1) == []
    (vacuum,) = blocks("docs/how-to/postgresql.md", "How large it becomes")
    sql(owner, vacuum.text)
    (role,) = sql(site.url("postgres"), "SELECT * FROM pg_roles WHERE rolname = 'metastudio'")
    assert not any(role[right] for right in ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication"))


def test_each_table_and_view_is_covered(site: Site) -> None:
    """The store may add to each table of the schema; the reader reads each view, and the tables without a secret."""
    found = sql(
        site.url("postgres"),
        f"""
        SELECT relname AS name, relkind IN ('v', 'm') AS is_view,
            has_any_column_privilege('metastudio_reader', pg_class.oid, 'SELECT') AS read,
            has_table_privilege('metastudio_store', pg_class.oid, 'INSERT') AS stored,
            has_table_privilege('metastudio_store', pg_class.oid, 'UPDATE') AS updated
        FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm') AND nspname = '{site.schema}'
        """,
    )
    views = {*schema.views.tables, "ordered_events"}
    tables = {"streams", "jobs", "platform_jobs", "alembic_version"}
    assert {row["name"] for row in found if row["is_view"]} == views
    assert {row["name"] for row in found if row["read"]} == views | tables
    assert {row["name"] for row in found if row["stored"]} == schema.metadata.tables.keys()
    assert {row["name"] for row in found if row["updated"]} == schema.metadata.tables.keys() - {"events", "quarantine"}


def test_tables_and_views_of_a_later_version(site: Site) -> None:
    """Run again, the file covers what a later version has added, and takes what was granted besides."""
    site.psql(
        "metastudio",
        "--command=CREATE TABLE later (job_id text); CREATE VIEW later_jobs AS SELECT job_id FROM later",
        "--command=GRANT SELECT ON stale_after TO metastudio_reader; GRANT DELETE ON events TO metastudio_store",
    )
    site.roles("metastudio")
    sql(site.url("metastudio_store"), "INSERT INTO later VALUES ('job')")
    assert sql(site.url("metastudio_reader"), "SELECT * FROM later_jobs") == [{"job_id": "job"}]
    site.psql("metastudio", "--command=DROP TABLE later CASCADE")
    test_each_table_and_view_is_covered(site)
    test_store_is_refused(site, "DELETE FROM events")


def test_documented_queries_as_the_reader(site: Site) -> None:
    """Each query of the pages for analysts and of the runbook can be run by the reader."""
    queries = [
        *blocks("docs/reference/tables-and-views.md", language="sql"),
        *blocks("docs/how-to/runbook.md", language="sql"),
    ]
    assert len(queries) > 5
    for query in queries:
        sql(site.url("metastudio_reader"), query.text)


LEAKS = {
    "a table": ("GRANT SELECT ON events TO metastudio_reader", "may read events.body"),
    "a column": ("GRANT SELECT (stream_key) ON events TO metastudio_reader", "may read events.stream_key"),
    "the quarantine": ("GRANT SELECT (body) ON quarantine TO metastudio_reader", "may read quarantine.body"),
    "everybody": ("GRANT SELECT ON events TO PUBLIC", "may read events.body"),
    "everybody, a column": ("GRANT SELECT (body) ON events TO PUBLIC", "may read events.body"),
    "a role": ("GRANT metastudio TO metastudio_reader", "metastudio may read events.body"),
    "a role of a role": (
        (
            "CREATE ROLE team; GRANT SELECT (body) ON events TO team; CREATE ROLE lead IN ROLE team;"
            "GRANT lead TO metastudio_reader"
        ),
        "team may read events.body",
    ),
    "a role to change to": (
        (
            "CREATE ROLE team NOINHERIT; ALTER ROLE metastudio_reader NOINHERIT; GRANT SELECT ON events TO team;"
            "GRANT team TO metastudio_reader"
        ),
        "team may read events.body",
    ),
    "all data": ("GRANT pg_read_all_data TO metastudio_reader", "the rights of pg_read_all_data"),
    "files": ("GRANT pg_read_server_files TO metastudio_reader", "the rights of pg_read_server_files"),
    "a superuser": ("ALTER ROLE metastudio_reader SUPERUSER", "the rights of metastudio_reader"),
    "replication": ("ALTER ROLE metastudio_reader REPLICATION", "the rights of metastudio_reader"),
    "who makes roles": ("ALTER ROLE metastudio_reader CREATEROLE", "the rights of metastudio_reader"),
    "a trigger": ("GRANT TRIGGER ON events TO metastudio_reader", "may make a trigger on events"),
    "a view": ("CREATE VIEW leak AS SELECT * FROM events; GRANT SELECT ON leak TO metastudio_reader", "view leak"),
    "a view with another name": (
        "CREATE VIEW leak AS SELECT id, body AS words FROM events; GRANT SELECT ON leak TO metastudio_reader",
        "view leak",
    ),
    "a part": (
        "CREATE VIEW leak AS SELECT left(stream_key, 9) AS x FROM events; GRANT SELECT (x) ON leak TO PUBLIC",
        "view leak",
    ),
    "a condition": (
        "CREATE VIEW leak AS SELECT id FROM events WHERE body LIKE '%x%'; GRANT SELECT ON leak TO metastudio_reader",
        "view leak",
    ),
    "a subquery": (
        (
            "CREATE VIEW leak AS SELECT j.job_id, e.t FROM jobs AS j CROSS JOIN LATERAL"
            " (SELECT *, upper(body) AS t FROM events AS e WHERE e.job_id = j.job_id OFFSET 0) AS e;"
            "GRANT SELECT ON leak TO metastudio_reader"
        ),
        "view leak",
    ),
    "a view of a view": (
        (
            "CREATE VIEW one AS SELECT body AS words FROM quarantine; CREATE VIEW leak AS SELECT words AS w FROM one;"
            "GRANT SELECT ON leak TO metastudio_reader"
        ),
        "view leak",
    ),
    "a view that is kept": (
        "CREATE MATERIALIZED VIEW leak AS SELECT body AS words FROM events; GRANT SELECT ON leak TO metastudio_reader",
        "view leak",
    ),
    "one of our views": (
        (
            "CREATE OR REPLACE VIEW rtmp_stream_state_change AS SELECT id, endpoint, room_id, job_id, sent_at,"
            " received_at, stream_key AS output_url, state, 1 AS place_in_second FROM events"
        ),
        "view rtmp_stream_state_change",
    ),
    "a partition": (
        (
            "CREATE TABLE part () INHERITS (events); ALTER TABLE part OWNER TO metastudio;"
            "GRANT SELECT ON part TO metastudio_reader"
        ),
        "may read part.body",
    ),
    "a function": (
        "CREATE FUNCTION leak() RETURNS SETOF text SECURITY DEFINER LANGUAGE sql AS 'SELECT body FROM events'",
        "may call leak(), which has the rights of postgres",
    ),
    "default privileges": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE metastudio GRANT SELECT ON TABLES TO metastudio_reader",
        "metastudio_reader may read what metastudio creates",
    ),
    "default privileges of everybody": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE metastudio GRANT SELECT ON TABLES TO PUBLIC",
        "PUBLIC may read what metastudio creates",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_check_finds(site: Site, leak: str) -> None:
    """Whatever gives the reader a body or a stream key is found, and named, and psql fails."""
    made, expected = LEAKS[leak]
    path = f'SET search_path = "{site.schema}"'
    commands = ["--command=BEGIN", f"--command={path}", f"--command={made}"]  # undone when psql ends
    output = site.psql("postgres", *commands, "--file", FOLDER / "check.sql", exit_code=FAILED)
    assert "metastudio_reader can get at bodies or stream keys: " in output
    assert expected in output


def test_nothing_stays_where_the_check_fails(site: Site) -> None:
    """The file is one transaction: where it fails, not even what is right is granted."""
    for file in ("roles.sql", "reader.sql"):
        site.psql("metastudio", "--command=REVOKE SELECT ON live_jobs FROM metastudio_reader")
        site.psql("metastudio", "--command=GRANT SELECT ON events TO PUBLIC")
        assert "may read" in site.psql("metastudio", "--file", FOLDER / file, exit_code=FAILED)
        with pytest.raises(ProgrammingError, match="permission denied"):
            sql(site.url("metastudio_reader"), "SELECT * FROM live_jobs")
        site.psql("metastudio", "--command=REVOKE ALL ON events FROM PUBLIC")
        site.psql("metastudio", "--file", FOLDER / file)
        sql(site.url("metastudio_reader"), "SELECT * FROM live_jobs")


def test_what_is_left_to_a_superuser(site: Site) -> None:
    """An owner does what an owner may, is told the rest without a password, and the whole ends with a failure."""
    superuser = site.url("postgres")
    sql(superuser, "ALTER ROLE metastudio_reader RESET statement_timeout; DROP OWNED BY metastudio_store")
    sql(superuser, "DROP ROLE metastudio_store")
    output = site.roles("metastudio", exit_code=FAILED, METASTUDIO_READER_PASSWORD="the secret")
    assert "for a superuser: CREATE ROLE metastudio_store LOGIN;" in output
    assert "for a superuser: ALTER ROLE metastudio_reader SET statement_timeout = '30s';" in output
    assert r"for a superuser: \password metastudio_reader;" in output
    assert "have a superuser run the statements above, then run this again" in output
    assert "secret" not in output
    sql(site.url("metastudio_reader"), "SELECT * FROM live_jobs")
    told = [line.partition("for a superuser: ")[2] for line in output.splitlines()]
    for statement in told:
        if statement and not statement.startswith("\\"):
            sql(superuser, statement)
    assert site.roles("metastudio").splitlines() == [DONE]
    test_each_table_and_view_is_covered(site)
