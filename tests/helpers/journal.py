"""A journal for tests, and deliveries to append to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from receiver.delivery import Delivery
from receiver.journal.journal import Journal
from receiver.journal.record import Record, decode
from receiver.journal.table import SCHEMA
from receiver.metrics import Metrics
from tests.helpers.receiver import SAMPLES

KIB = 2**10
FULL = "the journal or its disk is full"
DELIVERIES = [
    Delivery("default", 1726012345.25, 1725928200.0, b"66df9308", SAMPLES["SHOOT_SCRIPT_SWITCH"]),
    Delivery("other", 0.0, 253402214400.0, b"", b""),
    Delivery("default", 1726012345.123456, 1744612873.35, b"1963307D486", bytes(range(256))),
    Delivery("default", 1726012346.0, 1725928200.0, b"66df9308", "商品1\n".encode() * KIB, quarantine_reason="stale"),
]


def delivery(body: bytes) -> Delivery:
    return Delivery("default", 1726012345.25, 1725928200.0, b"66df9308", body)


def numbered(count: int, size: int = 0) -> list[Delivery]:
    return [delivery(b"%d".ljust(size) % number) for number in range(count)]


@contextmanager
def opened(
    path: Path,
    max_bytes: int = 2**30,
    metrics: Metrics | None = None,
    keep: float = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Journal]:
    journal = Journal(path, max_bytes, metrics or Metrics(), asyncio.Event(), keep, clock)
    try:
        yield journal
    finally:
        journal.close()


def waiting(journal: Journal, limit: int = 10_000) -> list[Delivery]:
    """The deliveries of one read."""
    return [one for record in read(journal, 0, limit) for one in decode(record.data)]


def read(journal: Journal, after: int, limit: int) -> list[Record]:
    return asyncio.run(journal.read(after, limit))


def kept(journal: Journal) -> list[Delivery]:
    """What is stored and kept."""
    found: list[Delivery] = []
    after = 0
    while batch := asyncio.run(journal.read_kept(after, 1000)):
        found += [one for record in batch for one in decode(record.data)]
        after = batch[-1].id
    return found


def store(journal: Journal, last_id: int) -> None:
    asyncio.run(journal.store(last_id))


def make_inbox(path: Path, deliveries: Sequence[Delivery], first_id: int = 1) -> None:
    """A journal as version 0.1 wrote it."""
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute(
            "CREATE TABLE inbox (id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, received_at REAL NOT NULL,"
            " sent_at REAL NOT NULL, time_text BLOB NOT NULL, body BLOB NOT NULL, quarantine_reason TEXT)"
        )
        connection.execute("BEGIN")
        rows = [(row_id, *one) for row_id, one in enumerate(deliveries, first_id)]
        connection.executemany("INSERT INTO inbox VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")


def make_half_taken_over(path: Path, deliveries: Sequence[Delivery]) -> None:
    """The same, with the tables of today beside it, one of which cannot be read."""
    make_inbox(path, deliveries)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'records'").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)


def append_each(journal: Journal, *deliveries: Delivery) -> list[str]:
    """Append one after the other, so that each has a row of its own; returns what kept each from the disk."""
    return [problem for one in deliveries for problem in append(journal, one)]


def append(journal: Journal, *deliveries: Delivery) -> list[str]:
    """Append all in one turn of a loop; returns what kept each from the disk, or nothing."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*map(journal.append, deliveries), return_exceptions=True)

    return [str(error or "") for error in asyncio.run(gather())]


def run_in_child(function: Callable[..., None], *arguments: str, within: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run `function` in a process of its own, started by the command `within`; returns exit code and output."""
    name = function.__name__
    code = f"import sys; from {function.__module__} import {name}; {name}(*sys.argv[1:])"
    command = [*within, sys.executable, "-c", code, *arguments]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    return done.returncode, done.stdout


class Deaths:
    """Ends this process, with exit code 9, before the call with the number `at` of functions that it was told of."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.steps = 0  # the calls so far

    def before(self, owner: object, name: str) -> None:
        """Count the calls of a module's or a class's function."""
        call = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            if self.steps == self._at:
                os._exit(9)
            self.steps += 1
            return call(*arguments)

        setattr(owner, name, counted)


def small_disk(folder: Path) -> tuple[str, ...]:
    """The command in which `folder` is a file system of 1 MiB, for root or not; nothing where mounts are forbidden."""
    mount = ("sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(folder))
    for namespace in (("unshare", "--mount"), ("unshare", "--mount", "--user", "--map-root-user")):
        with suppress(FileNotFoundError):
            if subprocess.run([*namespace, *mount, "true"], capture_output=True, check=False).returncode == 0:
                return (*namespace, *mount)
    return ()


def fill(journal: Journal) -> list[bytes]:
    """Append until a page more is refused; returns the bodies that were taken."""
    taken = []
    for size in (64 * KIB, 4 * KIB):
        for one in numbered(1000, size):
            if append(journal, one) == [FULL]:
                break
            taken.append(one.body)
    return taken


def sample(metrics: Metrics, name: str) -> float:
    """The value of a metric without labels."""
    value = metrics.registry.get_sample_value(f"metastudio_{name}")
    assert value is not None
    return value
