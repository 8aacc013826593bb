"""A real cluster that Patroni manages, with etcd: Debian's packages, as their manuals say to use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from tests.helpers.receiver import free_port, wait_until
from tests.helpers.replication import DATABASE, make_database, url_of_ports

_SERVERS = Path("/usr/lib/postgresql/15/bin")
_NEEDED = {"patroni": "patroni", "etcd": "etcd-server", str(_SERVERS / "postgres"): "postgresql-15"}
_SCOPE = "metastudio"
_PASSWORD = "of-the-cluster"
_SLOW = 180  # seconds: a lease ends after 20


class Member:
    """One server of the cluster, with the Patroni that manages it."""

    def __init__(self, folder: Path, etcd_port: int) -> None:
        folder.mkdir()
        self._user = "nobody" if os.geteuid() == 0 else None
        shutil.chown(folder, self._user or os.geteuid())
        self.name, self.port, self._api_port = folder.name, free_port(), free_port()
        self._folder = folder
        self.configuration = folder / "patroni.yml"
        self.configuration.write_text(json.dumps(self._configured(etcd_port)))  # which is YAML too
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> URL:
        """Where its superuser reaches it."""
        return URL.create("postgresql+psycopg", "postgres", _PASSWORD, "127.0.0.1", self.port, DATABASE)

    def start(self) -> None:
        """Start Patroni, which starts the server, or makes it a copy of the leader's."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["patroni", self.configuration],
                cwd="/",
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill -9 of Patroni and of the server, as where the machine is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._folder / "data/postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def end(self) -> None:
        """End both."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def is_leader(self) -> bool:
        """Whether Patroni says that it holds the leader's lease, and the server takes writes."""
        return self._says("primary")

    def is_synchronous(self) -> bool:
        """Whether Patroni says that it is the synchronous standby."""
        return self._says("synchronous")

    def is_replica(self) -> bool:
        """Whether Patroni says that it is a standby which streams."""
        return self._says("replica")

    def _says(self, what: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._api_port}/{what}", timeout=10):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return False

    def _configured(self, etcd_port: int) -> dict[str, Any]:
        where, api = f"127.0.0.1:{self.port}", f"127.0.0.1:{self._api_port}"
        return {
            "scope": _SCOPE,
            "name": self.name,
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "restapi": {"listen": api, "connect_address": api},
            "bootstrap": {
                "dcs": {
                    "ttl": 20,  # the least
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "postgresql": {"use_pg_rewind": True},
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": where,
                "connect_address": where,
                "data_dir": str(self._folder / "data"),
                "bin_dir": str(_SERVERS),
                "pgpass": str(self._folder / "pgpass"),
                "pg_hba": ["host all storing 127.0.0.1/32 trust"]
                + [f"host {one} all 127.0.0.1/32 scram-sha-256" for one in ("all", "replication")],
                "parameters": {"unix_socket_directories": str(self._folder), "fsync": "off"},
                "authentication": {
                    "superuser": {"username": "postgres", "password": _PASSWORD},
                    "replication": {"username": "replicator", "password": _PASSWORD},
                    "rewind": {"username": "rewinder", "password": _PASSWORD},
                },
            },
            "watchdog": {"mode": "off"},  # there is no such device here
        }


class PatroniCluster:
    """Three members: after a failover in strict mode the new leader needs another standby."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    @property
    def url(self) -> str:
        """What receivers are given."""
        return url_of_ports(*(one.port for one in self.members))

    def leader(self) -> Member | None:
        """The one that leads, if there is one."""
        return next((one for one in self.members if one.is_leader()), None)

    def wait_until_whole(self) -> Member:
        """Wait for a leader with a synchronous standby and another one, and return the leader."""

        def is_whole() -> bool:
            return self.leader() is not None and sum(one.is_replica() for one in self.members) == len(self.members) - 1

        wait_until(is_whole, "a leader and its standbys", _SLOW)
        wait_until(lambda: any(one.is_synchronous() for one in self.members), "a synchronous standby", _SLOW)
        leader: Member = wait_until(self.leader, "a leader", _SLOW)
        return leader

    def wait_for_another_than(self, before: Member) -> Member:
        """Wait until another one leads."""
        found: Member = wait_until(
            lambda: next((one for one in self.members if one is not before and one.is_leader()), None),
            "another leader",
            _SLOW,
        )
        return found

    def switch_over(self) -> None:
        """Have Patroni change the leader, as an administrator does."""
        command = ["patronictl", "-c", str(self.members[0].configuration), "switchover", _SCOPE, "--force"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def make_database(self) -> None:
        """Make the receiver's database on the leader."""
        make_database(self.wait_until_whole().url.set(database="postgres"))


@contextmanager
def new_patroni_cluster() -> Iterator[PatroniCluster]:
    """A running cluster with the receiver's database; fails, naming the packages, where they are missing."""
    missing = [package for program, package in _NEEDED.items() if shutil.which(program) is None]
    assert not missing, f"install the Debian packages {' '.join(missing)}: `make faults` needs them"
    with tempfile.TemporaryDirectory(prefix="patroni-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        etcd_port = free_port()
        stack.enter_context(_etcd(folder, etcd_port))
        cluster = PatroniCluster([Member(folder / f"server{number}", etcd_port) for number in (1, 2, 3)])
        for one in cluster.members:
            stack.callback(one.end)
            one.start()
        cluster.make_database()
        yield cluster


@contextmanager
def _etcd(folder: Path, port: int) -> Iterator[None]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    command = ["etcd", f"--data-dir={folder / 'etcd'}", f"--initial-cluster=default={peer}"]
    command += [f"--{name}-client-urls={client}" for name in ("listen", "advertise")]
    command += [f"--{name}-peer-urls={peer}" for name in ("listen", "initial-advertise")]
    with (folder / "etcd.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.kill()
