"""Real clusters of PostgreSQL for tests: a primary, a standby that streams from it, and what happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psycopg
from sqlalchemy import URL

from receiver.database.database import Database
from tests.helpers.postgres import PrivatePostgreSQL
from tests.helpers.receiver import wait_until

DATABASE = "metastudio"
ROLE = "storing"  # which can store, and no more
_RIGHTS = (
    "GRANT SELECT, INSERT ON events, quarantine TO storing",
    "GRANT SELECT, INSERT, UPDATE ON streams, jobs, stale_after TO storing",
    "GRANT SELECT ON platform_jobs, platform_check TO storing",
    "GRANT SELECT ON alembic_version TO storing",
)
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'storing' AND wait_event = 'SyncRep'"


def sql(url: URL, statement: str) -> list[Any]:
    """What a superuser is answered, whose statements wait for no standby."""
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True, options="-c synchronous_commit=local") as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def make_database(server: URL) -> None:
    """Make the receiver's database, its schema, and the role that only stores; `server` is the superuser's URL."""
    sql(server, f"CREATE ROLE {ROLE} LOGIN")
    sql(server, f"CREATE DATABASE {DATABASE}")
    url = server.set(database=DATABASE)
    database = Database(url.render_as_string(hide_password=False))
    database.migrate()
    database.close()
    for one in _RIGHTS:
        sql(url, one)


class Node(PrivatePostgreSQL):
    """A server of a cluster: with the database of a receiver, or as a copy of another one."""

    def __init__(self, folder: Path, *, programs: Path | None = None, source: Node | None = None) -> None:
        self._given_programs = source.programs if source is not None else programs
        self._source = source
        folder.mkdir()
        super().__init__(folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def programs(self) -> Path:
        """The folder of its PostgreSQL's programs."""
        return self._programs

    def sql(self, statement: str) -> list[Any]:
        """What the superuser is answered, through the socket."""
        return sql(self.url.set(database=DATABASE), statement)

    def value(self, statement: str) -> Any:
        """The one value of the answer."""
        return self.sql(statement)[0][0]

    def set(self, option: str, value: str) -> None:
        """Change an option of the server, and wait until that is in force."""
        before = self.value("SELECT pg_conf_load_time()")
        self.sql(f"ALTER SYSTEM SET {option} = {value}")
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.value("SELECT pg_conf_load_time()") != before, "the new configuration")

    def waiting_for_standby(self) -> int:
        """How many of the receivers' commits wait for a standby."""
        count: int = self.value(_WAITING)
        return count

    def jobs(self) -> list[str]:
        """The jobs of all stored events, in the order of the times."""
        return [job_id for (job_id,) in self.sql("SELECT job_id FROM events ORDER BY sent_at, received_at")]

    def is_standby(self) -> bool:
        """Whether it replays another server's changes."""
        return bool(self.value("SELECT pg_is_in_recovery()"))

    def is_in_step_with(self, primary: Node) -> bool:
        """Whether it has replayed all that the primary has written."""
        return bool(self.value(f"SELECT pg_last_wal_replay_lsn() >= '{primary.value('SELECT pg_current_wal_lsn()')}'"))

    def wait_for(self, primary: Node) -> None:
        """Wait until this standby streams from the primary, and has all of it."""
        wait_until(lambda: primary.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"), "a stream")
        wait_until(lambda: self.is_in_step_with(primary), "a standby in step")

    def promote(self) -> None:
        """Make a primary of this standby."""
        assert self.value("SELECT pg_promote()")

    def require_standby(self) -> None:
        """Have its commits wait for its standby."""
        self.set("synchronous_standby_names", "'*'")
        wait_until(lambda: self.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"), "a standby")

    def disconnect(self) -> None:
        """Let this standby fall behind: it streams no more."""
        self.set("primary_conninfo", "''")
        wait_until(lambda: not self.sql("SELECT 1 FROM pg_stat_wal_receiver"), "the end of the stream")

    def end_sessions(self, how: str = "pg_terminate_backend") -> None:
        """End the receivers' sessions, or (pg_cancel_backend) what they do."""
        self.sql(f"SELECT {how}(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")

    def kill(self) -> None:
        """Kill all its processes, none of which may write anything any more, if it runs."""
        if not self.is_running:
            return
        processes = self._processes()
        self.freeze()
        for one in processes:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it at once, and start it."""
        self.stop()
        self.start()

    def rewind(self, primary: Node) -> None:
        """Make of this stopped server, which was the primary, a standby of the one that took over."""
        # Before version 16 pg_rewind knows of the promotion from the latest checkpoint only.
        primary.sql("CHECKPOINT")
        source = f"host={primary.folder} port={primary.port} user=postgres dbname=postgres"
        self._execute("pg_rewind", f"--target-pgdata={self.folder / 'data'}", f"--source-server={source}", "-R", "-N")
        self._forget_options()

    def _find_programs(self) -> Path:
        return super()._find_programs() if self._given_programs is None else self._given_programs

    def _make_data(self) -> None:
        if self._source is None:
            # With checksums, as pg_rewind needs them: the default of newer versions only.
            self._run(
                "initdb",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-N",
                "-k",
                "--wal-segsize=1",
            )
            with (self._folder / "data/postgresql.conf").open("a") as options:
                # pg_rewind needs some history, and starts the server with what this file says of connections.
                options.write("wal_keep_size = 64MB\nmax_connections = 20\n")
            return
        if not self._source.is_running:
            subprocess.run(["cp", "--archive", self._source.folder / "data", self._folder], check=True)
            return
        where = [f"--host={self._source.folder}", f"--port={self._source.port}", "--username=postgres"]
        self._run("pg_basebackup", *where, "--checkpoint=fast", "--no-sync", "--write-recovery-conf")
        self._forget_options()

    def _forget_options(self) -> None:
        """Wait for no standby: of what ALTER SYSTEM has set, keep only where to stream from."""
        options = self._folder / "data/postgresql.auto.conf"
        kept = [line for line in options.read_text().splitlines() if line.startswith("primary_conninfo")]
        options.write_text(f"{kept[-1]}\n")


PROGRAMS = [None, *map(Path, os.environ.get("FAULT_POSTGRESQL", "").split())]  # of the wheel, and of others


class Cluster:
    """A primary and a standby of it, which change their parts."""

    def __init__(self, first: Node, second: Node) -> None:
        self.first, self.second = first, second

    @property
    def url(self) -> str:
        """What receivers are given: both servers, of which they are to take the primary."""
        return url_of(self.first, self.second)


def url_of(*nodes: Node) -> str:
    """What receivers are given to reach the one of these servers that is the primary."""
    return url_of_ports(*(one.port for one in nodes))


def url_of_ports(*ports: int) -> str:
    """The same, by the ports on this machine."""
    hosts = tuple(f"127.0.0.1:{port}" for port in ports)
    query = {"host": hosts, "target_session_attrs": "read-write"}
    return URL.create("postgresql+psycopg", ROLE, database=DATABASE, query=query).render_as_string()


@contextmanager
def new_template(programs: Path | None = None) -> Iterator[Node]:
    """A stopped server with the receiver's database; of another PostgreSQL where a folder of its programs is given."""
    assert programs is None or programs.is_dir(), f"{programs} is missing: install the Debian package postgresql-15"
    with _new_folder() as folder, Node(folder / "template", programs=programs) as template:
        make_database(template.url)
        template.stop(signal.SIGINT)
        yield template


@contextmanager
def new_primary(template: Node) -> Iterator[Node]:
    """A running copy of the template."""
    with _new_folder() as folder, Node(folder / "first", source=template) as first:
        yield first


@contextmanager
def new_cluster(template: Node) -> Iterator[Cluster]:
    """A running copy of the template, and a standby that is in step with it."""
    with new_primary(template) as first, Node(first.folder / "second", source=first) as second:
        second.wait_for(first)
        yield Cluster(first, second)


@contextmanager
def _new_folder() -> Iterator[Path]:
    # Not in pytest's folder: only its owner may enter that, and a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="replication-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
