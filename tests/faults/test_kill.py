"""kill -9 and SIGTERM at any moment under load."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.load import Load, Receiver, ended, held, strace
from tests.helpers.outcome import Outcome, compare
from tests.helpers.receiver import is_alive, wait_until

Record = Callable[[Outcome], None]

# The standard library's client sometimes leaves the socket of a handshake that the kill has cut.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


def kill(receiver: Receiver) -> None:
    assert receiver.stop(signal.SIGKILL) == -signal.SIGKILL


class Killer:
    """Ways to be killed. Each takes a fresh process to its moment, and gives how long (at most) to wait then."""

    def __init__(self, receiver: Receiver, load: Load) -> None:
        self._receiver = receiver
        self._load = load
        began = time.monotonic()
        receiver.start()
        self._start_up = time.monotonic() - began  # on this machine
        load.wait_for()
        kill(receiver)

    def ways(self) -> list[Callable[[random.Random], None]]:
        return [self.at_start_up, self.under_load, self.with_database_held, self.while_draining, self.at_the_end]

    def at_start_up(self, chance: random.Random) -> None:
        self._receiver.spawn()
        time.sleep(chance.uniform(0, 1.2 * self._start_up))

    def under_load(self, chance: random.Random) -> None:
        self._serve()
        time.sleep(chance.uniform(0, 0.5))

    def with_database_held(self, chance: random.Random) -> None:
        self._serve()
        with held(self._receiver.database_url):
            self._load.wait_for(20)
            time.sleep(chance.uniform(0, 0.2))
            kill(self._receiver)

    def while_draining(self, chance: random.Random) -> None:
        self._serve()
        with held(self._receiver.database_url):
            self._load.wait_for(100)
        time.sleep(chance.uniform(0, 0.1))

    def at_the_end(self, chance: random.Random) -> None:
        self._serve()
        self._receiver.process.send_signal(signal.SIGTERM)
        time.sleep(chance.uniform(0, 0.3))

    def _serve(self) -> None:
        self._receiver.start()
        self._load.wait_for()  # which is new: a fresh event succeeds after each fault


def test_kill_at_any_moment(
    tmp_path: Path, database_url: str, kills: int, chance: random.Random, record: Record
) -> None:
    """Kill -9 in start-up, under load, in the middle of a transaction, while draining or ending loses nothing."""
    receiver = Receiver(tmp_path, RECEIVER_DATABASE_URL=database_url)
    receiver.migrate()
    load = Load([receiver])
    runs = (kills + 1) // 2  # of each database
    with ended(receiver), load.running():
        ways = Killer(receiver, load).ways()
        for number in range(runs - 1):
            ways[number % len(ways)](chance)
            assert receiver.stop(signal.SIGKILL) in (-signal.SIGKILL, 0)
        receiver.start()
        load.wait_for()
        load.stop()
        record(compare(f"kill -9, {database_url.partition(':')[0]}", load, runs=runs))
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log
    assert "damaged" not in receiver.log


def test_kill_on_a_slow_disk(tmp_path: Path, kills: int, chance: random.Random, record: Record) -> None:
    """Kill -9 while each write to the disk takes long loses nothing: no answer comes before its event is written."""
    slow = strace("pwrite64", "pwrite64:delay_enter=5000", Path(os.devnull))  # microseconds
    receiver = Receiver(tmp_path, tls=False, under=slow)
    load = Load([receiver], connections=8)
    runs = max(3, kills // 10)
    with ended(receiver), load.running():
        for _ in range(runs):
            receiver.start()
            load.wait_for(10)
            time.sleep(chance.uniform(0, 0.2))
            kill(receiver)
        receiver.under = ()
        receiver.start()
        load.wait_for()
        load.stop()
        record(compare("kill -9 on a slow disk", load, runs=runs))


def test_sigterm_under_load(tmp_path: Path, chance: random.Random, record: Record) -> None:
    """SIGTERM under load ends with 0; requests under way are answered or refused, and nothing is lost."""
    receiver = Receiver(tmp_path)
    load = Load([receiver], connections=8)
    runs = 3
    with ended(receiver), load.running():
        for _ in range(runs):
            receiver.start()
            load.wait_for(20)
            time.sleep(chance.uniform(0, 0.2))
            assert receiver.stop() == 0
        receiver.start()
        load.wait_for()
        load.stop()
        record(compare("SIGTERM", load, runs=runs))
    assert "Traceback" not in receiver.log
    assert "damaged" not in receiver.log


def kill_worker(receiver: Receiver) -> None:
    """Kill the worker, if there is one."""
    children = Path(f"/proc/{receiver.process.pid}/task/{receiver.process.pid}/children")
    for pid in children.read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_kill_of_the_worker(
    tmp_path: Path, database_url: str, worker_kills: int, chance: random.Random, record: Record
) -> None:
    """Kill -9 of the projector's worker at any moment, also in its start, costs no callback and loses nothing."""
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=database_url)
    receiver.migrate()
    load = Load([receiver])
    runs = (worker_kills + 1) // 2  # of each database
    with ended(receiver):
        receiver.start()
        with load.running():
            for number in range(runs):
                if number % 3 == 0:  # under load; else in its start, or a little later
                    wait_until(lambda: receiver.metric("database_up") == 1, "a database in use")
                time.sleep(chance.uniform(0, 0.6))
                if number % 5 == 1:
                    with held(receiver.database_url):
                        time.sleep(chance.uniform(0, 0.3))
                        kill_worker(receiver)
                else:
                    kill_worker(receiver)
                load.wait_for()
        assert load.refused == 0
        record(compare(f"kill -9 of the worker, {database_url.partition(':')[0]}", load, runs=runs))
        assert receiver.log.count('"projector ended, starting it again"') >= min(runs, 20) // 2
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log
    assert "damaged" not in receiver.log


def test_kill_of_both(tmp_path: Path, database_url: str, kills: int, chance: random.Random, record: Record) -> None:
    """Kill -9 of both processes, one a little before the other, loses nothing."""
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=database_url)
    receiver.migrate()
    load = Load([receiver])
    runs = max(3, kills // 10)
    with ended(receiver), load.running():
        for number in range(runs):
            receiver.start()
            load.wait_for(10)
            worker = receiver.worker
            time.sleep(chance.uniform(0, 0.5))
            if number % 2:
                kill_worker(receiver)
                time.sleep(chance.uniform(0, 0.2))
            kill(receiver)
            wait_until(lambda worker=worker: not is_alive(worker), "the worker's end")  # type: ignore[misc]
        receiver.start()
        load.wait_for()
        load.stop()
        record(compare(f"kill -9 of both, {database_url.partition(':')[0]}", load, runs=runs))
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log
    assert "damaged" not in receiver.log


def test_stopped_worker(tmp_path: Path, stopped_for: float, record: Record) -> None:
    """While the worker is stopped (SIGSTOP) under load callbacks go on; afterwards all is stored once."""
    receiver = Receiver(tmp_path, tls=False)
    load = Load([receiver])
    with ended(receiver):
        receiver.start()
        with load.running():
            load.wait_for(10)
            os.kill(receiver.worker, signal.SIGSTOP)
            ends_at = time.monotonic() + stopped_for
            while time.monotonic() < ends_at:
                load.wait_for(10)
            assert load.refused == 0
            assert receiver.metric("journal_events") > 0
            os.kill(receiver.worker, signal.SIGCONT)
            load.wait_for(10)
        record(compare("worker stopped", load))
        assert receiver.metric("projector_restarts_total") == 0
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log
    assert "damaged" not in receiver.log
