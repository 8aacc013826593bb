"""The page on systemd, word by word, as root on a file system whose changes go with the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from receiver.settings.load import load
from tests.helpers.pages import ROOT, blocks
from tests.helpers.receiver import free_port

UNIT = (ROOT / "deploy/systemd/receiver.service").read_text()
SETTINGS = ROOT / "deploy/systemd/receiver.toml"

# $1 is an empty folder, $2 one with stand-ins for the programs that need systemd or a person.
_OWN_FILES = """
mount -t tmpfs tmpfs "$1"
for place in etc opt usr/local var/lib root; do
  mkdir -p "$1/new/$place" "$1/overlay/$place"
  mount -t overlay -o "lowerdir=/$place,upperdir=$1/new/$place,workdir=$1/overlay/$place" overlay "/$place"
done
chmod 711 /root  # where this test's Python may be
PATH=$2:$PATH
"""
# As the unit has it: the folder, the key as a credential, the user, the program.
_SERVICE = """
install --directory --owner=receiver --group=receiver --mode=700 /var/lib/receiver
install --directory --owner=receiver --mode=500 /etc/credentials
install --owner=receiver --mode=400 /etc/receiver/key /etc/credentials/key
(cd /var/lib/receiver; umask 022; RECEIVER_CONFIG=/etc/receiver/receiver.toml /opt/receiver/bin/receiver migrate)
cd /var/lib/receiver
RECEIVER_KEY_FILE=/etc/credentials/key RECEIVER_CONFIG=/etc/receiver/receiver.toml \
  setpriv --reuid=receiver --regid=receiver --init-groups --bounding-set=-all --no-new-privs \
  /opt/receiver/bin/receiver serve > /var/lib/log 2>&1 &
service=$!
trap 'kill $service; wait $service || true; cat /var/lib/log' EXIT
for _ in $(seq 60); do receiver status > /dev/null 2>&1 && break || sleep 0.1; done
cd /
"""
_AFTERWARDS = """
receiver send --to "http://127.0.0.1:$PORT_OF_TEST"
for _ in $(seq 60); do receiver history 2> /dev/null | grep -q job-of-receiver-send && break || sleep 0.1; done
receiver history
cd "$3"
"""
_AT_THE_END = """
stat --format='owner %U %a %n' /var/lib/receiver/var /var/lib/receiver/var/* /etc/receiver/*
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the page does")
def test_each_command_as_printed(tmp_path: Path) -> None:
    """The service starts on what the page installs, and people's commands work beside it without taking its files.

    Root has migrated the database before, past the command for people.
    """
    install, use, postgresql = blocks("docs/how-to/deploy-systemd.md")
    (backup, _) = blocks("docs/how-to/back-up-and-restore.md", "SQLite")
    project, programs, files = (tmp_path / name for name in ("project", "programs", "files"))
    for folder in (project, programs, files):
        folder.mkdir()
    for name in ("receiver", "migrations", "deploy"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    port = str(free_port())
    # This test's Python, without its virtual environment, in place of Debian's.
    stand_ins = {
        "python3": f'exec {sys.base_prefix}/bin/python3 "$@"',
        "systemctl": "true",
        "editor": f"sed -i s/events.example.com/localhost:{port}/ $1",
    }
    for name, does in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    script = [
        "set -euo pipefail",
        _OWN_FILES,
        'cd "$3"',
        install.text,
        _SERVICE,
        use.text,
        _AFTERWARDS,
        f"(cd /var/lib/receiver; {backup.text.replace('backup.db', 'var/backup.db')})",
    ]
    # Any database does: what the page says of its URL is the same.
    script += ["echo sqlite:////var/lib/receiver/var/other.db > database-url", postgresql.text, _AT_THE_END]
    environ = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",  # without the project's own commands
        "RECEIVER_LISTEN": f"127.0.0.1:{port}",
        "PORT_OF_TEST": port,
        "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{free_port()}",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "RECEIVER_"))}
    command = ["unshare", "--mount", "bash", "-c", "\n".join(script), "bash", *map(str, (files, programs, project))]
    done = subprocess.run(command, env=kept | environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job-of-receiver-send" in done.stdout
    assert "its file   /var/lib/receiver/var/journal.db" in done.stdout
    assert f'"live_event_type_callback_url": "https://localhost:{port}/callbacks/metastudio"' in done.stdout
    owners = dict[str, tuple[str, str]]()
    for user, mode, name in re.findall(r"^owner (\S+) (\d+) (\S+)$", done.stdout, flags=re.MULTILINE):
        owners[name] = user, mode
    state = {
        owner for name, owner in owners.items() if name.startswith("/var/lib/receiver/var/") and "backup" not in name
    }
    assert state == {("receiver", "600")}, owners
    assert owners["/var/lib/receiver/var/backup.db"][1] == "600"
    assert owners["/var/lib/receiver/var"] == ("receiver", "700")
    assert {owners[f"/etc/receiver/{name}"] for name in ("key", "receiver.toml", "database-url")} == {("root", "640")}


def test_shipped_settings(tmp_path: Path) -> None:
    """The receiver takes the file as it is and with each commented setting; it holds no secret."""
    (tmp_path / "key").write_text("0123456789abcdef")
    text = SETTINGS.read_text().replace("/etc/receiver", str(tmp_path))
    (tmp_path / "database-url").write_text("postgresql+psycopg://metastudio_store:x@h/metastudio\n")
    whole = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    for content in (text, whole):
        (tmp_path / "receiver.toml").write_text(content)
        settings = load(tmp_path / "receiver.toml", {})
        assert settings.endpoints[0].key == "0123456789abcdef"
    assert settings.database_url.startswith("postgresql")
    assert tomllib.loads(whole).keys() > tomllib.loads(text).keys() == {"live_event_type_callback_url", "key_file"}
