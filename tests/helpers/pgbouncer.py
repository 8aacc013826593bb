"""A real PgBouncer before a real PostgreSQL, with Debian's own configuration."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from tests.helpers.quick import service
from tests.helpers.receiver import free_port, wait_until

_PROGRAM = "/usr/sbin/pgbouncer"
# The second is for whoever may not read the first.
_CONFIGURATIONS = (Path("/etc/pgbouncer/pgbouncer.ini"), Path("/usr/share/doc/pgbouncer/examples/pgbouncer.ini"))
PASSWORD = "of-the-pool"


@contextmanager
def pgbouncer(server: URL, databases: Mapping[str, tuple[str, str]]) -> Iterator[Mapping[str, str]]:
    """A PgBouncer before `server`; gives the URL of each pool, of which `databases` has the database and options.

    Only databases, logins, places and the port are other than in what Debian installs.
    """
    service("PgBouncer")
    query = server.normalized_query
    host = server.host or query["host"][0]
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        pools = "".join(
            f"{pool} = host={host} port={server.port or 5432} dbname={database} {options}\n"
            for pool, (database, options) in databases.items()
        )
        original = next(file for file in _CONFIGURATIONS if os.access(file, os.R_OK)).read_text()
        changes = {
            "logfile": folder / "log",
            "pidfile": folder / "pid",
            "unix_socket_dir": folder,
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "auth_file": folder / "users",
        }
        for setting, value in changes.items():
            original, count = re.subn(rf"(?m)^;?{setting} = .*$", f"{setting} = {value}", original, count=1)
            assert count == 1, setting
        (folder / "pgbouncer.ini").write_text(original.replace("[databases]\n", f"[databases]\n{pools}", 1))
        (folder / "users").write_text(f'"{server.username}" "{PASSWORD}"\n')
        user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, 65534, 65534)
        process = subprocess.Popen(
            [_PROGRAM, "--quiet", str(folder / "pgbouncer.ini")], cwd="/", user=user, stderr=subprocess.DEVNULL
        )
        urls = {pool: _url(server, port, pool) for pool in databases}
        try:
            wait_until(lambda: process.poll() is not None or _answers(port), "a PgBouncer that is ready")
            assert process.poll() is None, (folder / "log").read_text()
            yield urls
        finally:
            process.kill()
            process.wait()


def _url(server: URL, port: int, pool: str) -> str:
    url = URL.create("postgresql+psycopg", server.username, PASSWORD, "127.0.0.1", port, pool)
    return url.render_as_string(hide_password=False)


def _answers(port: int) -> bool:
    try:
        psycopg.connect(host="127.0.0.1", port=port, dbname="no such pool", user="nobody", connect_timeout=10).close()
    except psycopg.OperationalError as error:
        return "refused" not in str(error)
    return True
