"""The PostgreSQL 15 of Debian, for what is to be tried on the oldest version that is supported, with its programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.helpers.postgres import PrivatePostgreSQL
from tests.helpers.quick import service
from tests.helpers.receiver import free_port

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


class DebianPostgreSQL(PrivatePostgreSQL):
    """A server of its own, as `PrivatePostgreSQL` is."""

    def __init__(self, folder: Path) -> None:
        service("PostgreSQL")
        self._folder = self.folder = folder
        self._log = folder / "log"
        self._user = "nobody" if os.geteuid() == 0 else None
        self._fsync = "off"
        self._programs = PROGRAMS
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
