"""The operator's guide: its commands as they stand in docs/how-to, on real databases and receivers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine, make_url, text

from receiver.protocol.signature import sign
from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import compare, drained, stored_bodies
from tests.helpers.pages import blocks
from tests.helpers.postgres import PostgreSQL, new_database
from tests.helpers.receiver import KEY, SAMPLES
from tests.helpers.shell import run

NEW_KEY = "another-key-of-32-characters-...."[:32]


@pytest.fixture
def second_url(postgresql_server: Any) -> Iterator[str]:
    """The URL of another empty PostgreSQL database."""
    with new_database(postgresql_server) as url:
        yield url


def libpq(url: str) -> str:
    """The URL as PostgreSQL's own programs read it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def start_under(load: Load) -> None:
    """Start the load's receiver, and let it store what comes."""
    (receiver,) = load.receivers
    receiver.start()
    with load.running():
        load.wait_for(20)
    drained(receiver)


def test_backup_of_sqlite(tmp_path: Path) -> None:
    """A backup that is made under load is restored whole, and what waits in the journal comes into it."""
    backup, restore = blocks("docs/how-to/back-up-and-restore.md", "SQLite")
    receiver = Receiver(tmp_path, tls=False)
    before, after = Load([receiver]), Load([receiver])
    with ended(receiver):
        start_under(before)
        with after.running():
            run(backup.text, tmp_path)
            after.wait_for(20)
        assert receiver.stop() == 0
        run(restore.text, tmp_path)
        receiver.start()
        compare("restoring SQLite", before).check()
        assert len(stored_bodies(receiver.database_url, after.run)) < len(after.acknowledged)
        assert receiver.post(SAMPLES["REPLY_COMMAND_FINISH"]).status == 200
        assert receiver.stop() == 0


def test_backup_of_postgresql(tmp_path: Path, postgresql_url: str, second_url: str) -> None:
    """A backup that is made under load is restored into another database, on which the receiver goes on."""
    backup, restore = blocks("docs/how-to/back-up-and-restore.md", "PostgreSQL")
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=postgresql_url)
    receiver.migrate()
    before, after = Load([receiver]), Load([receiver])
    with ended(receiver):
        start_under(before)
        with after.running():
            run(backup.text, tmp_path, {"DATABASE": libpq(postgresql_url)})
            after.wait_for(20)
            run(restore.text, tmp_path, {"EMPTY_DATABASE": libpq(second_url)})
            assert receiver.stop() == 0
        receiver.environ["RECEIVER_DATABASE_URL"] = second_url
        receiver.start()
        compare("restoring PostgreSQL", before).check()
        run(f"receiver copy --from '{postgresql_url}'", tmp_path, receiver.environ)
        compare("what came after the backup", after).check()
        assert receiver.stop() == 0


def test_move_to_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    """Copied, restarted on PostgreSQL and copied again, under load: each acknowledged event is there once."""
    (move,) = blocks("docs/how-to/move-databases.md")
    receiver = Receiver(tmp_path, tls=False)
    load = Load([receiver])
    with ended(receiver):
        receiver.start()
        with load.running():
            load.wait_for(50)
            run(move.text, tmp_path, receiver.environ | {"RECEIVER_DATABASE_URL": postgresql_url})
            load.wait_for(50)
            assert receiver.stop() == 0
            receiver.environ["RECEIVER_DATABASE_URL"] = postgresql_url
            receiver.start()
            load.wait_for(20)
        run(move.text.splitlines()[1], tmp_path, receiver.environ)
        compare("moving to another database", load).check()
        assert receiver.stop() == 0


def test_new_postgresql(tmp_path: Path, own_postgresql: PostgreSQL) -> None:
    """The role that the page makes can make the schema in the database that it makes."""
    (statements,) = blocks("docs/how-to/postgresql.md", "Set it up", language="sql")
    (migrate,) = blocks("docs/how-to/postgresql.md", "Set it up", language="bash")
    (setting,) = blocks("docs/how-to/postgresql.md", "Set it up", language="toml")
    written = make_url(setting.text.split('"')[1])
    engine = create_engine(own_postgresql.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as superuser:
        for statement in filter(str.strip, statements.text.split(";")):
            superuser.execute(text(statement))
        try:
            url = own_postgresql.url.set(
                username=written.username, password=written.password, database=written.database
            )
            assert written.drivername == url.drivername
            environ = {"RECEIVER_KEY": KEY, "RECEIVER_DATABASE_URL": url.render_as_string(hide_password=False)}
            assert "The schema is at revision" in run(migrate.text, tmp_path, environ)
        finally:
            superuser.execute(text("DROP DATABASE metastudio"))
            superuser.execute(text("DROP ROLE metastudio"))
    engine.dispose()


def test_change_of_the_key(tmp_path: Path) -> None:
    """Both keys are accepted while both are set, and told apart; the old one is not once it is removed."""
    receiver = Receiver(tmp_path, tls=False)

    def post(key: str) -> int:
        parts = urlsplit(sign(receiver.url, key, time.time()).url)
        return receiver.request("POST", f"{parts.path}?{parts.query}", SAMPLES["SHOOT_SCRIPT_SWITCH"]).status

    with ended(receiver):
        receiver.environ |= {"RECEIVER_KEY": NEW_KEY, "RECEIVER_PREVIOUS_KEY": KEY}
        receiver.start()
        assert [post(key) for key in (KEY, NEW_KEY, NEW_KEY)] == [200, 200, 200]
        counted = {
            key: sum(
                value
                for (name, labels), value in receiver.metrics().items()
                if name == "signature_matches_total" and key in labels
            )
            for key in ("previous", "current")
        }
        assert counted == {"previous": 1, "current": 2}
        assert receiver.stop() == 0
        del receiver.environ["RECEIVER_PREVIOUS_KEY"]
        receiver.start()
        assert [post(key) for key in (KEY, NEW_KEY)] == [401, 200]
        assert receiver.stop() == 0
