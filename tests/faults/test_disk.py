"""Disks that fail, that fill up, and that give back other bytes than were written."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from receiver.journal.damaged import unrecovered
from tests.helpers.load import Load, Receiver, awaits_lock, ended, event_body, held, strace
from tests.helpers.outcome import Outcome, compare, drained
from tests.helpers.receiver import wait_until

Record = Callable[[Outcome], None]

PAGE = 4096
DAMAGE = b"\xa5" * PAGE
BACKLOG = 400  # events of 20 kB: some more than one batch

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@contextmanager
def database_away(receiver: Receiver) -> Iterator[None]:
    """Where a directory is, no SQLite database can be; at the end it is there, with its schema."""
    path = receiver.folder / "var/receiver.db"
    aside = path.with_name("aside.db")
    if path.exists():
        path.rename(aside)
    path.mkdir(parents=True)
    try:
        yield
    finally:
        path.rmdir()
        if aside.exists():
            aside.rename(path)
        receiver.migrate()


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of a few dozen megabytes, mounted at `path`."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def ballast(folder: Path) -> Iterator[None]:
    """A file that takes all the space that is left."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (64 * 1024, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:  # no space left
                continue
    try:
        yield
    finally:
        path.unlink()


def large_body(run: str, number: int) -> bytes:
    return event_body(run, number) + b" " * 20_000


def huge_body(run: str, number: int) -> bytes:
    return event_body(run, number) + b" " * 200_000


@pytest.mark.parametrize("call", ["fdatasync,fsync", "pwrite64", "pread64"])
def test_io_errors(tmp_path: Path, call: str, record: Record) -> None:
    """While the journal's disk fails it is 200 or 503 and never 500; afterwards it recovers by itself."""
    failing = f"{call}:error=EIO:when=100..160"  # of the thread's calls
    journal = [tmp_path / f"var/journal.db{suffix}" for suffix in ("", "-wal")]
    receiver = Receiver(tmp_path, tls=False, under=strace(call, failing, tmp_path / "strace", *journal))
    load = Load([receiver], connections=8)
    with ended(receiver):
        receiver.start()
        with load.running():
            wait_until(lambda: (tmp_path / "strace").read_bytes().count(b"INJECTED") >= 61 or load.wrong, "the errors")
            load.wait_for(10)
        assert load.refused or call == "pread64"
        # SQLite takes an error in reading for damage.
        wait_until(lambda: not unrecovered(receiver.journal), "recovery")
        record(compare(f"EIO from {call}", load))
        assert receiver.operations("/readyz").status == 200
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log


@needs_root
def test_full_disk(tmp_path: Path, record: Record) -> None:
    """A full disk is answered 503 and is not ready; when there is space again, all is well by itself."""
    journal = tmp_path / "small/journal.db"
    receiver = Receiver(tmp_path, tls=False, RECEIVER_JOURNAL=str(journal))
    load = Load([receiver])
    with small_disk(journal.parent), ended(receiver), load.running():
        away = ExitStack()
        away.enter_context(database_away(receiver))
        receiver.start()
        load.wait_for(20)
        with ballast(journal.parent):
            load.wait_until_refused(20)
            assert receiver.operations("/readyz").status == 503
            assert receiver.operations("/healthz").status == 200
        load.wait_for(20)
        assert receiver.operations("/readyz").status == 200
        with ballast(journal.parent):
            load.wait_until_refused(20)
            # What is stored now cannot be removed from the journal: that takes space too.
            away.close()
            wait_until(lambda: receiver.metric("projector_errors_total", "journal"), "an event that cannot be removed")
        load.wait_for(20)
        load.stop()
        record(compare("full disk", load, runs=2))
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log


@needs_root
def test_disk_smaller_than_the_journal(tmp_path: Path, record: Record) -> None:
    """A journal that fills its own disk while the database is away drains when the database is back."""
    journal = tmp_path / "small/journal.db"
    receiver = Receiver(tmp_path, tls=False, RECEIVER_JOURNAL=str(journal))
    load = Load([receiver], body=huge_body)
    with small_disk(journal.parent), ended(receiver), load.running():
        with database_away(receiver):
            receiver.start()
            load.wait_until_refused(20)
        load.wait_for(20)
        load.stop()
        record(compare("disk smaller than the journal", load))
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log


@needs_root
def test_kept_makes_room_on_the_disk(tmp_path: Path, record: Record) -> None:
    """What is kept of stored events fills a disk, and never costs one that comes: it goes first, in time."""
    journal = tmp_path / "small/journal.db"
    receiver = Receiver(tmp_path, tls=False, RECEIVER_JOURNAL=str(journal))
    load = Load([receiver], body=huge_body)
    with small_disk(journal.parent), ended(receiver):
        receiver.start()
        for _ in range(12):
            post(load, 50)  # of 200 kB
            drained(receiver)
        assert load.refused == 0
        record(compare("kept on a small disk", load))
        assert receiver.operations("/readyz").status == 200
        assert journal.stat().st_size > 2**24
        assert receiver.metric("journal_bytes") == 0
        assert receiver.stop() == 0
    assert receiver.log == ""


def test_full_journal(tmp_path: Path, record: Record) -> None:
    """With the database away a full journal is answered 503 and is not ready; with it back, all is well by itself."""
    receiver = Receiver(tmp_path, tls=False, RECEIVER_JOURNAL_MAX_BYTES=str(2**20))
    load = Load([receiver], connections=8)
    with ended(receiver), load.running():
        with database_away(receiver):
            receiver.start()
            load.wait_until_refused(20)
            assert receiver.operations("/readyz").status == 503
        load.wait_for(20)
        load.stop()
        record(compare("full journal", load))
        assert receiver.operations("/readyz").status == 200
        assert receiver.stop() == 0
    assert "Traceback" not in receiver.log


def test_damaged_header(tmp_path: Path, record: Record) -> None:
    """A journal that is none any more is moved aside as it is, an error names it, and a new one takes events."""
    receiver = backlogged(tmp_path, signal.SIGTERM)
    overwrite(receiver.journal, 0, 1)
    damaged = receiver.journal.read_bytes()
    load = Load([receiver])
    with ended(receiver):
        receiver.start()
        load.wait_until_accepted(receiver)
        record(compare("damaged journal, header", load))
        (moved,) = moved_aside(receiver.journal)
        assert moved.read_bytes() == damaged
        assert moved.name in errors(receiver)
        assert receiver.stop() == 0
        # And the new one is used from then on.
        receiver.start()
        load.wait_until_accepted(receiver)
        drained(receiver)
        assert moved_aside(receiver.journal) == [moved]


def test_damaged_header_behind_a_log(tmp_path: Path, record: Record) -> None:
    """A damaged header of which SQLite's WAL has a copy costs nothing: with the WAL all is still there."""
    receiver = backlogged(tmp_path, signal.SIGKILL)
    wal = Path(f"{receiver.journal}-wal")
    assert wal.stat().st_size > 0
    overwrite(receiver.journal, 0, 1)
    with ended(receiver):
        receiver.start()
        load = Load([receiver])
        load.wait_until_accepted(receiver)
        wait_until(lambda: not unrecovered(receiver.journal), "recovery")
        record(compare("damaged journal, header, with its WAL", load))
        assert count_events(receiver) == BACKLOG + 1


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_damaged_middle(tmp_path: Path, end: signal.Signals, record: Record) -> None:
    """A journal damaged in the middle is moved aside and recovered, and nothing accepted after the damage is lost."""
    receiver = backlogged(tmp_path, end)
    pages = receiver.journal.stat().st_size // PAGE
    first, last = pages // 3, 2 * pages // 3
    load = Load([receiver])
    with ended(receiver):
        with database_away(receiver):
            overwrite(receiver.journal, first, last)
            # While nobody reads the journal, these can go into the damaged one.
            receiver.start()
            post(load, 20)
        wait_until(lambda: '"damaged journal recovered"' in receiver.log, "a recovered journal")
        (moved,) = moved_aside(receiver.journal)
        assert DAMAGE in moved.read_bytes()  # of which a WAL may have brought back a part
        assert moved.name.replace("recovered", "damaged") in errors(receiver)
        load.wait_until_accepted(receiver)
        record(compare(f"damaged journal, middle, {end.name}", load))
        assert BACKLOG // 2 < count_events(receiver) < BACKLOG + 20
        assert receiver.stop() == 0


def test_callbacks_while_a_journal_is_recovered(tmp_path: Path, record: Record) -> None:
    """With a large damaged journal to recover and a database that takes nothing, callbacks are answered at once."""
    receiver = backlogged(tmp_path, signal.SIGTERM)
    receiver.journal.rename(f"{receiver.journal}.damaged-20260101T000000")
    load = Load([receiver])
    with ended(receiver):
        with held(receiver.database_url):
            receiver.start()
            post(load, 20)
            assert receiver.operations("/readyz").status == 200
            assert len(unrecovered(receiver.journal)) == 1
        wait_until(lambda: not unrecovered(receiver.journal), "recovery")
        record(compare("damaged journal, callbacks meanwhile", load))
        assert count_events(receiver) == BACKLOG + 20


def test_journal_damaged_under_a_batch(tmp_path: Path, postgresql_url: str, record: Record) -> None:
    """Damage found while a batch is on its way to the database costs nothing of what the new journal has taken."""
    receiver = Receiver(tmp_path, tls=False, RECEIVER_DATABASE_URL=postgresql_url, RECEIVER_JOURNAL_KEEP="0")
    receiver.migrate()
    damage_free_pages(receiver)
    load = Load([receiver])
    with ended(receiver):
        with held(postgresql_url):
            receiver.start()
            wait_until(lambda: awaits_lock(postgresql_url) or moved_aside(receiver.journal), "a batch on its way")
            post(load, 40)  # of which one finds the damage
            assert moved_aside(receiver.journal)
        load.wait_until_accepted(receiver)
        wait_until(lambda: not unrecovered(receiver.journal), "recovery")
        record(compare("damaged journal, under a batch", load))


def test_damage_that_cannot_be_moved_aside(tmp_path: Path) -> None:
    """Where a damaged journal cannot be moved aside, it is 503 and not ready, or does not start; never 500."""
    longest = tmp_path / "var" / ("j" * 240)  # which leaves no room for a longer name
    receiver = Receiver(tmp_path, tls=False, RECEIVER_JOURNAL=str(longest), RECEIVER_JOURNAL_KEEP="0")
    receiver.migrate()
    damage_free_pages(receiver)
    load = Load([receiver], body=large_body)
    with ended(receiver):
        receiver.spawn()
        wait_until(lambda: receiver.serves() or not receiver.runs(), "a receiver that serves or has ended")
        if receiver.runs():
            load.start(20)
            load.wait()
            assert load.wrong == []
            assert load.refused >= 20
            assert receiver.operations("/readyz").status == 503
        else:
            assert receiver.process.returncode == 1
    assert "Traceback" not in receiver.log


def damage_free_pages(receiver: Receiver) -> None:
    """Leave a small backlog, and damage of what reading does not need and writing does."""
    with ended(receiver):
        receiver.start()
        with held(receiver.database_url):
            post(Load([receiver], body=large_body), BACKLOG)
        drained(receiver)
        with held(receiver.database_url):
            post(Load([receiver]), 20)
            receiver.stop(signal.SIGKILL)
    with closing(sqlite3.connect(receiver.journal)) as connection:
        assert connection.execute("SELECT sum(deliveries) FROM records").fetchone()[0] >= 20
    # The first page of the list of free ones, which the large backlog has left.
    trunk = int.from_bytes(receiver.journal.read_bytes()[32:36], "big") - 1
    assert trunk > 0
    overwrite(receiver.journal, trunk, trunk + 1)


def backlogged(folder: Path, end: signal.Signals) -> Receiver:
    """A receiver that has ended with a backlog."""
    receiver = Receiver(folder, tls=False)
    load = Load([receiver], body=large_body)
    with ended(receiver), database_away(receiver):
        receiver.start()
        post(load, BACKLOG)
        receiver.stop(end)
    return receiver


def post(load: Load, count: int) -> None:
    """Post as many events, all of which are accepted."""
    before = len(load.acknowledged)
    load.start(count)
    load.wait()
    assert len(load.acknowledged) == before + count


def overwrite(path: Path, first: int, last: int) -> None:
    """Damage pages, up to `last`."""
    with path.open("r+b") as file:
        file.seek(first * PAGE)
        file.write(DAMAGE * (last - first))


def moved_aside(journal: Path) -> list[Path]:
    """The damaged files, recovered or not, without their WALs."""
    found = [*journal.parent.glob(f"{journal.name}.damaged-*"), *journal.parent.glob(f"{journal.name}.recovered-*")]
    return sorted(one for one in found if not one.name.endswith("-wal"))


def count_events(receiver: Receiver) -> int:
    engine = create_engine(receiver.database_url)
    try:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT count(*) FROM events")) or 0
    finally:
        engine.dispose()


def errors(receiver: Receiver) -> str:
    return "".join(line for line in receiver.log.splitlines() if json.loads(line)["level"] == "error")
