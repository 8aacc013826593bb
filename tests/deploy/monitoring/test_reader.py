from __future__ import annotations

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from receiver.cli import main
from tests.helpers.pages import Block, blocks, pages
from tests.helpers.stack import ROOM_NAME, UP, Stack, add_reader

VIEWS = (
    "alembic_version",  # a table, as are jobs and streams
    "jobs",
    "live_jobs",
    "ordered_events",
    "platform_jobs",  # a table, which has no secret
    "reply_command_finish",
    "rtmp_stream_state_change",
    "script_timeline",
    "shoot_script_switch",
    "stream_outages",
    "stream_sessions",
    "streams",  # a table, which has no stream key
)
PRIVILEGES = """
    SELECT relname AS name, privilege
    FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
        AND has_table_privilege('metastudio_reader', oid, privilege)
    ORDER BY name, privilege
"""  # noqa: E501


def test_it_reads_the_views(monitored: Stack) -> None:
    """Each view can be read, and none of them has the stream key or the body."""
    for view in VIEWS:
        rows = monitored.rows(f"SELECT * FROM {view}")
        assert rows, view
        assert not any(row.keys() & {"stream_key", "body"} for row in rows), view


@pytest.mark.parametrize(
    "query",
    [*blocks("docs/reference/tables-and-views.md", language="sql"), *blocks("docs/how-to/runbook.md", language="sql")],
    ids=lambda block: block.text.partition("\n")[0],
)
def test_it_can_run_each_query_of_the_documentation(monitored: Stack, query: Block) -> None:
    """Who is told to run a query can run it as this role."""
    monitored.rows(query.text)


def test_all_queries_of_the_documentation_are_run() -> None:
    """Queries stand on no other page: what else is SQL there is for the owner."""
    others = {page for page in pages() for block in blocks(page, language="sql") if "SELECT" in block.text}
    assert others == {"docs/reference/tables-and-views.md", "docs/how-to/runbook.md"}


@pytest.mark.parametrize("arguments", [["history"], ["history", UP.job_id], ["report"]], ids=" ".join)
def test_it_can_run_the_commands(monitored: Stack, arguments: list[str]) -> None:
    """The commands for people who look at streams need no more than this role."""
    url = monitored.reader.render_as_string(hide_password=False).replace(" ", "%20")  # of the password
    environ = {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": "key"}
    result = CliRunner().invoke(main, arguments, env=environ)
    assert result.exit_code == 0, result.output
    assert ROOM_NAME in result.stdout


def test_it_may_nothing_else(monitored: Stack) -> None:
    """Of all tables and views of the schema it may read these; it may not write, and has no other right."""
    found = monitored.rows(PRIVILEGES, owner=True)
    assert [(row["name"], row["privilege"]) for row in found] == [(view, "SELECT") for view in VIEWS]
    (role,) = monitored.rows("SELECT * FROM pg_roles WHERE rolname = 'metastudio_reader'", owner=True)
    rights = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
    assert not any(role[right] for right in rights)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM events",
        "SELECT stream_key FROM events",
        "SELECT * FROM quarantine",
        "UPDATE streams SET state = 'END'",
        "UPDATE stale_after SET seconds = 1",
        "DELETE FROM jobs",
        "INSERT INTO rtmp_stream_state_change (endpoint, job_id, state) VALUES ('default', 'made up', 'END')",
        "UPDATE rtmp_stream_state_change SET state = 'END'",
        "DELETE FROM rtmp_stream_state_change",
        "DELETE FROM events",
        "CREATE TABLE mine (id integer)",
        "CREATE VIEW mine AS SELECT 1",
        "COPY live_jobs TO PROGRAM 'cat'",
    ],
)
def test_it_is_refused(monitored: Stack, statement: str) -> None:
    """Tables cannot be read and nothing can be written, also by who switches the role's own default off."""
    engine = create_engine(monitored.reader)
    try:
        with engine.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.commit()
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(statement))
    finally:
        engine.dispose()


def test_no_stream_key_can_be_seen(monitored: Stack) -> None:
    """No view shows any of the stream keys that the simulated livestream sent."""
    keys = monitored.rows("SELECT DISTINCT stream_key FROM events WHERE stream_key IS NOT NULL", owner=True)
    assert len(keys) == 6
    shown = "".join(str(monitored.rows(f"SELECT * FROM {view}")) for view in VIEWS)
    assert monitored.ended_job in shown
    assert not any(row["stream_key"] in shown for row in keys)


def test_it_cannot_be_a_burden(monitored: Stack) -> None:
    """A statement that takes long is ended, a forgotten transaction too, and connections are limited."""
    assert monitored.rows("SHOW statement_timeout") == [{"statement_timeout": "30s"}]
    assert monitored.rows("SHOW idle_in_transaction_session_timeout") == [
        {"idle_in_transaction_session_timeout": "1min"}
    ]
    assert monitored.rows("SHOW default_transaction_read_only") == [{"default_transaction_read_only": "on"}]
    (role,) = monitored.rows("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'metastudio_reader'", owner=True)
    assert role["rolconnlimit"] == 20


def test_it_can_be_run_again(monitored: Stack) -> None:
    """After an upgrade the script is run again: the role stays and has a password, and what more it was given goes."""
    engine = create_engine(monitored.owner)
    try:
        with engine.begin() as connection:
            connection.execute(text("GRANT SELECT ON events TO metastudio_reader"))
    finally:
        engine.dispose()
    add_reader(monitored.owner)
    test_it_may_nothing_else(monitored)
    (role,) = monitored.rows("SELECT rolpassword FROM pg_authid WHERE rolname = 'metastudio_reader'", owner=True)
    assert role["rolpassword"].startswith("SCRAM-SHA-256")
    assert monitored.rows(f"SELECT state FROM live_jobs WHERE job_id = '{UP.job_id}'") == [{"state": "CONNECTED"}]
