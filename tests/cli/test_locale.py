"""Commands in a locale whose encoding lacks what is to be printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.database.database import Database
from receiver.database.rows import to_row
from receiver.delivery import Delivery
from tests.helpers.receiver import KEY


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings of a database with a Chinese title, for a process whose output is Latin-1."""
    url = f"sqlite:///{tmp_path_factory.mktemp('locale')}/receiver.db"
    message = {"job_id": "job", "room_id": "直播间", "shoot_script_title": "开场\x1b[31mé"}
    body = json.dumps({"event_type": "SHOOT_SCRIPT_SWITCH", "message": message}).encode()
    now = datetime.now(UTC).timestamp()
    with closing(Database(url)) as database:
        database.migrate()
        database.store([to_row(Delivery("default", now, now, b"1", body))], [])
    return os.environ | {"RECEIVER_DATABASE_URL": url, "RECEIVER_KEY": KEY, "PYTHONIOENCODING": "latin-1"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("history",),
        ("history", "job"),
        ("history", "job", "--csv"),
        ("history", "job", "--json"),
        ("report",),
        ("report", "--csv"),
        ("report", "--json"),
        ("delete", "job", "--dry-run"),
    ],
    ids=" ".join,
)
def test_latin_1(environ: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What Latin-1 lacks is printed as an escape, which in JSON means the same."""
    command = [sys.executable, "-m", "receiver", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=False)
    shown = done.stdout.decode("latin-1")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    assert "\x1b" not in shown
    if "--json" in arguments:
        assert "开场\x1b[31mé" in json.dumps(json.loads(shown), ensure_ascii=False).replace("\\u001b", "\x1b")
    elif "delete" not in arguments and arguments != ("history",):
        assert "\\u5f00\\u573a\\ufffd[31mé" in shown


def test_errors(environ: dict[str, str], tmp_path: Path) -> None:
    """So it is with errors."""
    command = [sys.executable, "-m", "receiver", "history", "没有"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b"Error: no job begins with \\u6ca1\\u6709\n"
