"""The pages' commands for roles, backup and restore, word by word, from one server onto a fresh one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL

from receiver.database.database import Database
from receiver.database.rows import quarantine_row, to_row
from receiver.delivery import Delivery
from tests.helpers.database import sql
from tests.helpers.debian_postgres import PROGRAMS, DebianPostgreSQL
from tests.helpers.pages import ROOT, blocks
from tests.helpers.postgres import PostgreSQL, PrivatePostgreSQL
from tests.helpers.receiver import KEY, SAMPLES
from tests.helpers.shell import run

TABLES = ("events", "quarantine", "streams", "jobs", "alembic_version", "live_jobs", "stream_sessions")


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[list[PostgreSQL]]:
    """Two servers that know nothing of each other, with programs of their version."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as one, tempfile.TemporaryDirectory() as other:
        kind = PrivatePostgreSQL if request.param == "18" else DebianPostgreSQL
        made = [kind(Path(folder)) for folder in (one, other)]
        for server in made:
            server.start()
        yield list(made)
        for server in made:
            server.stop()


def libpq(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.parametrize(("servers", "schema"), [("18", "public"), ("15", "live_events")], indirect=["servers"])
def test_onto_a_fresh_server(servers: list[PostgreSQL], schema: str, tmp_path: Path) -> None:
    """What the roles' page sets up and the store fills is the same on a fresh server after backup and restore."""
    (setup,) = blocks("docs/how-to/postgresql.md", "Roles with no more rights than they need", language="bash")
    backup, _ = blocks("docs/how-to/back-up-and-restore.md", "PostgreSQL")
    (restore,) = blocks("docs/how-to/back-up-and-restore.md", "PostgreSQL, on a fresh server")
    old, new = (server.url.set(database="metastudio") for server in servers)
    environ = {
        "RECEIVER_KEY": KEY,
        "SUPERUSER": libpq(old),
        "OWNER": libpq(old.set(username="metastudio")),
        "DATABASE": libpq(old.set(username="metastudio")),
        "NEW_AS_SUPERUSER": libpq(new),
        "NEW_AS_OWNER": libpq(new.set(username="metastudio")),
    }
    is_oldest = isinstance(servers[0], DebianPostgreSQL)

    def type_in(text: str) -> None:
        if schema != "public":
            text = text.replace("psql ", f"psql --set schema={schema} ").replace(
                "pg_restore ", f"pg_restore --schema={schema} "
            )
        path = f"PATH={PROGRAMS}:$PATH\n" if is_oldest else ""
        run(f"cd {ROOT}\n{path}{text.replace('backup.dump', str(tmp_path / 'backup.dump'))}", tmp_path, environ)

    run(f"createdb --maintenance-db='{libpq(servers[0].url)}' metastudio", tmp_path)
    type_in(setup.text)
    deliveries = [Delivery("default", 2e9, 2e9, bytes([at]), body) for at, body in enumerate(SAMPLES.values())]
    with closing(Database(old.set(username="metastudio_store").render_as_string())) as database:
        database.store([to_row(one) for one in deliveries], [quarantine_row(deliveries[0], "not_json")])
    type_in(backup.text)
    environ["SUPERUSER"] = libpq(servers[1].url)
    type_in(restore.text)
    before, after = (
        {table: sql(url.set(username="metastudio").render_as_string(), f"SELECT * FROM {table}") for table in TABLES}
        for url in (old, new)
    )
    assert before == after
    assert all(before.values())
    with closing(Database(new.set(username="metastudio_store").render_as_string())) as database:
        database.check_schema()
        more = Delivery("default", 2e9, 2e9, b"more", SAMPLES["REPLY_COMMAND_FINISH"])
        assert len(database.store([to_row(more)], []).events) == 1
    assert len(sql(new.set(username="metastudio_reader").render_as_string(), "SELECT * FROM live_jobs")) == 1
