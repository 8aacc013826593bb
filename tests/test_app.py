"""What the composition root opens it closes, however a receiver ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from receiver.app import running
from receiver.journal.journal import Journal, JournalError
from receiver.metrics import Metrics
from receiver.server.sockets import ListenError
from receiver.settings.load import load
from receiver.settings.settings import Settings
from tests.helpers.load import Receiver as Process
from tests.helpers.load import ended
from tests.helpers.receiver import KEY, SAMPLES, free_port, wait_until

GRACE = 5  # seconds that a request under way is given without a second signal
# `receiver serve`, of which a part fails once there is a file `fail` in its folder.
_FAILING = """
import os, sys
from receiver.cli import main
from receiver.projector.feeder import Feeder
from receiver.server.certificate import Certificate
from receiver.server.limiter import ConnectionLimiter

drop_overdue, next_batch = ConnectionLimiter.drop_overdue, Feeder._next

def fail(part):
    if part == sys.argv[1] and os.path.exists("fail"):
        raise RuntimeError("a fault that the test makes")

def drop_overdue_or_fail(limiter, now):
    fail(limiter._listener)
    drop_overdue(limiter, now)

async def next_or_fail(feeder):
    fail("feeder")
    return await next_batch(feeder)

ConnectionLimiter.drop_overdue = drop_overdue_or_fail
Feeder._next = next_or_fail
Certificate.reload_if_changed = lambda certificate: fail("certificate")
main(["serve"])
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(
        None,
        {
            "RECEIVER_CONFIG": os.devnull,
            "RECEIVER_KEY": KEY,
            "RECEIVER_LISTEN": f"127.0.0.1:{free_port()}",
            "RECEIVER_OPERATIONS_LISTEN": f"127.0.0.1:{free_port()}",
            "RECEIVER_JOURNAL": str(tmp_path / "journal.db"),
            "RECEIVER_DATABASE_URL": f"sqlite:///{tmp_path}/receiver.db",
        },
    )


def children() -> list[str]:
    """The processes that this one has started and not waited for."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def open_files(settings: Settings) -> list[str]:
    """The journal's and the database's files that this process, or one that it has started, has open."""
    files = []
    for process in ("self", *children()):
        with suppress(FileNotFoundError):  # it has ended, or was open for the listing itself
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(FileNotFoundError):
                    files.append(str(descriptor.readlink()))
    return [file for file in files if file.startswith(str(settings.journal.parent))]


def is_taken(address: tuple[str, int]) -> bool:
    try:
        socket.create_server(address).close()
    except OSError:
        return True
    return False


@pytest.fixture
def assert_closed(settings: Settings) -> Callable[[], None]:
    """A check that neither file, port, thread nor process is left that was not there before the test."""
    others = children()  # fixtures of wider scope may have some

    def check() -> None:
        assert children() == others
        assert open_files(settings) == []
        assert not is_taken(settings.listen)
        assert not is_taken(settings.operations_listen)
        names = {thread.name for thread in threading.enumerate()}
        assert not [name for name in names if name.startswith("journal")]

    return check


async def start(settings: Settings) -> None:
    async with running(settings):
        raise AssertionError("it started")


@contextmanager
def taken(address: tuple[str, int]) -> Iterator[None]:
    with socket.create_server(address):
        yield


def test_end(settings: Settings, assert_closed: Callable[[], None]) -> None:
    """At the end of the block nothing is left open, and it was open until then."""

    async def run() -> None:
        async with running(settings):
            await asyncio.to_thread(wait_until, lambda: len(open_files(settings)) >= 4, "journal and database")
            assert is_taken(settings.listen)
            assert is_taken(settings.operations_listen)

    asyncio.run(run())
    assert_closed()


def test_error_in_the_block(settings: Settings, assert_closed: Callable[[], None]) -> None:
    """Nor is it when the block ends with an error, which is raised on."""

    async def run() -> None:
        async with running(settings):
            await asyncio.to_thread(wait_until, lambda: len(open_files(settings)) >= 4, "journal and database")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    assert_closed()


def test_public_port_is_taken(settings: Settings, assert_closed: Callable[[], None]) -> None:
    """The last step that fails, after journal and database were opened, closes both, and frees the other port."""
    with taken(settings.listen), pytest.raises(ListenError, match=r"^listen: "):
        asyncio.run(start(settings))
    assert_closed()


def test_operations_port_is_taken(settings: Settings, assert_closed: Callable[[], None]) -> None:
    """An operations port that is taken ends the start with an error that names the setting."""
    with taken(settings.operations_listen), pytest.raises(ListenError, match=r"^operations_listen: "):
        asyncio.run(start(settings))
    assert_closed()


def test_wrong_sockets_from_systemd(
    settings: Settings, assert_closed: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets from systemd that cannot be used end the start, after which nothing is open."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(ListenError, match=r"^LISTEN_FDS: "):
        asyncio.run(start(settings))
    assert_closed()


def test_bad_certificate(settings: Settings, assert_closed: Callable[[], None], tmp_path: Path) -> None:
    """A certificate that cannot be used ends the start before anything is opened."""
    missing = tmp_path / "missing"
    with pytest.raises(ListenError, match=r"^tls_certificate: "):
        asyncio.run(start(replace(settings, tls_certificate=missing, tls_key=missing)))
    assert_closed()


def test_journal_is_in_use(settings: Settings, assert_closed: Callable[[], None]) -> None:
    """A journal that another receiver has ends the start, and the port that was opened before is free again."""
    with closing(Journal(settings.journal, 2**20, Metrics(), asyncio.Event())), pytest.raises(JournalError):
        asyncio.run(start(settings))
    assert_closed()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd is told on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        yield bound


class Failing(Process):
    """A receiver of which a part fails when it is told to."""

    def __init__(self, folder: Path, part: str) -> None:
        super().__init__(folder, NOTIFY_SOCKET=str(folder / "notify"))
        self._part = part

    def spawn(self) -> Failing:
        """Start, and wait for nothing."""
        with self._out.open("wb") as stdout, self.log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _FAILING, self._part],
                cwd=self.folder,
                env=os.environ | self.environ,
                stdout=stdout,
                stderr=stderr,
            )
        return self

    def fail(self) -> None:
        (self.folder / "fail").touch()


@pytest.mark.parametrize("part", ["public", "operations", "certificate", "feeder"])
def test_part_that_fails(tmp_path: Path, manager: socket.socket, part: str) -> None:
    """When a part fails the process says why, closes journal and database in order, and ends with an error."""
    receiver = Failing(tmp_path, part)
    with ended(receiver):
        receiver.start()
        assert manager.recv(100) == b"READY=1"
        assert receiver.post(SAMPLES["SHOOT_SCRIPT_SWITCH"]).status == 200
        assert len(receiver.rows("SELECT * FROM events")) == 1
        receiver.fail()
        assert receiver.process.wait(60) == 1
    (line,) = [line for line in receiver.log.splitlines() if '"a part failed, ending"' in line]
    assert "RuntimeError('a fault that the test makes')" in line
    # SQLite removes these when a file is closed, not when its process just ends.
    assert list((tmp_path / "var").glob("*-wal")) == []


@pytest.mark.parametrize("part", ["public", "operations"])
def test_part_that_fails_at_once(tmp_path: Path, manager: socket.socket, part: str) -> None:
    """A server that fails when it starts ends the process with an error, and READY was not sent."""
    receiver = Failing(tmp_path, part)
    receiver.fail()
    with ended(receiver):
        receiver.spawn()
        assert receiver.process.wait(60) == 1
    assert "a fault that the test makes" in receiver.log
    assert not (tmp_path / "var/journal.db-wal").exists()
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_second_signal(tmp_path: Path) -> None:
    """The second signal ends it without waiting for a request that is under way."""
    receiver = Process(tmp_path, tls=False)
    with ended(receiver), closing(receiver.start().connect()) as slow:
        head = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n"
        slow.sendall(head.encode() + b"half of it")
        wait_until(lambda: receiver.metric("connections", "public") == 1, "the connection")
        began = time.monotonic()
        receiver.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_taken(("127.0.0.1", receiver.port)), "the end of accepting")
        assert receiver.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < GRACE
    assert "requests under way given up" in receiver.log
