"""Power cuts: a real file system whose unwritten pages are gone, under the journal and the database."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.load import Load, Receiver, ended
from tests.helpers.outcome import Outcome, compare
from tests.helpers.receiver import is_alive, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")

Record = Callable[[Outcome], None]

_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = struct.pack("I", 2)


class Disk:
    """An ext4 file system in a file of its own, mounted at `path`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        self._image = folder / "disk.img"
        with self._image.open("wb") as image:
            image.truncate(256 * 2**20)  # for what 200 cuts leave room to store
        _run("mkfs.ext4", "-q", "-F", str(self._image))

    def mount(self) -> None:
        """Mount, which replays the file system's own log."""
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Unmount; the loop device goes with it."""
        # A worker that was killed, and is not this process's child, may hold it for a moment.
        command = ["umount", str(self.path)]
        wait_until(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, "an end", 10)

    def cut(self) -> None:
        """Lose at once all that was not synced: nothing reaches the disk from now on."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _WITHOUT_LOG_FLUSH)
        finally:
            os.close(descriptor)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk that leaves nothing behind."""
    disk = Disk(folder)
    disk.mount()
    try:
        yield disk
    finally:
        with suppress(AssertionError):  # it is not mounted
            disk.unmount()
        assert str(folder) not in _run("losetup", "--list", "--noheadings", "--output=BACK-FILE")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def receiver_on(disk: Disk, folder: Path) -> Receiver:
    environ = {"RECEIVER_JOURNAL": f"{disk.path}/journal.db", "RECEIVER_DATABASE_URL": f"sqlite:///{disk.path}/r.db"}
    return Receiver(folder, tls=False, **environ)


def power_cut(disk: Disk, receiver: Receiver) -> None:
    # The process first: while ext4 shuts down, an fsync may end well of which nothing is kept; and no answer is
    # given after the power is gone.
    worker = receiver.worker
    for pid in (receiver.process.pid, worker):
        stop(pid, {"T", "D"})  # a thread that is in an fsync does not come back from it
    disk.cut()
    kill(receiver, worker)
    disk.unmount()
    disk.mount()


def kill(receiver: Receiver, worker: int) -> None:
    receiver.stop(signal.SIGKILL)
    with suppress(ProcessLookupError):  # it ends by itself, unless it was stopped before it had begun
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the worker's end")


def stop(pid: int, states: set[str]) -> None:
    """Let the process do no more, and wait until each thread is in one of these states."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: {state_of(task) for task in Path(f"/proc/{pid}/task").iterdir()} <= states, "a stop")


def state_of(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_power_cut_under_load(tmp_path: Path, power_cuts: int, chance: random.Random, record: Record) -> None:
    """A power cut at any moment under load loses nothing, in the journal and on the way to the database."""
    with mounted(tmp_path) as disk:
        receiver = receiver_on(disk, tmp_path)
        load = Load([receiver], connections=8)
        with ended(receiver), load.running():
            for _ in range(power_cuts):
                receiver.start()
                load.wait_for()
                time.sleep(chance.uniform(0, 0.5))
                power_cut(disk, receiver)
            receiver.start()
            load.wait_for()
            load.stop()
            record(compare("power cut", load, runs=power_cuts))


def test_power_cut_after_the_first_event(tmp_path: Path, power_cuts: int, record: Record) -> None:
    """A power cut right after the first event of a brand-new journal loses neither it nor the journal's file."""
    runs = max(2, power_cuts // 10)
    outcome = Outcome("power cut after the first event", 0, 0, 0)
    for number in range(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        with mounted(folder) as disk:
            receiver = receiver_on(disk, folder)
            load = Load([receiver])
            with ended(receiver):
                receiver.start()
                assert load.post(receiver).status == 200
                power_cut(disk, receiver)
                receiver.start()
                load.wait_until_accepted(receiver)
                outcome += compare(outcome.fault, load)
    record(outcome)


def test_power_goes_before_the_process(tmp_path: Path, record: Record) -> None:
    """Between the disk's end and the process's own nothing is answered 200: it is 503 and unready, never 500."""
    with mounted(tmp_path) as disk:
        receiver = receiver_on(disk, tmp_path)
        load = Load([receiver])
        with ended(receiver):
            receiver.start()
            with load.running():
                load.wait_for(10)
                stop(receiver.process.pid, {"T"})  # no fsync may be under way: see power_cut
                disk.cut()
                receiver.process.send_signal(signal.SIGCONT)
                load.wait_until_refused(10)
            assert receiver.operations("/readyz").status == 503
            assert load.post(receiver).status == 503
            kill(receiver, receiver.worker)
            disk.unmount()
            disk.mount()
            receiver.start()
            load.wait_until_accepted(receiver)
            record(compare("disk gone", load))
