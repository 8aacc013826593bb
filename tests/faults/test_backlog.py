"""A journal that was filled for days while the database was away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import pytest
from sqlalchemy import create_engine, text

from receiver.database.database import Database
from receiver.delivery import Delivery
from receiver.journal.journal import Journal
from receiver.journal.record import to_record
from receiver.metrics import Metrics
from receiver.tools.sender import load_bodies
from tests.helpers.outcome import Outcome
from tests.helpers.receiver import Process, running, wait_until

MIB = 2**20


@pytest.fixture
def backlog() -> int:
    """How many events wait in the journal."""
    return int(os.environ.get("FAULT_BACKLOG", "20000"))


def fill(journal: Path, bodies: Iterator[bytes]) -> None:
    """Write deliveries to the journal, past the program, as they would have come in the last hours."""
    Journal(journal, 2**30, Metrics(), asyncio.Event()).close()
    began = time.time() - 24 * 3600
    deliveries = (
        Delivery("default", at + 0.2, int(at), b"%x" % int(at), body)
        for number, body in enumerate(bodies)
        for at in [began + number / 100]
    )
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        # Of few deliveries each, as they came one by one.
        records = (
            to_record(number, [one, *islice(deliveries, number % 3)]) for number, one in enumerate(deliveries, 1)
        )
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", records)
        connection.execute("COMMIT")


def remembered(bodies: Iterator[bytes], put: Counter[bytes]) -> Iterator[bytes]:
    """The bodies, each of which (its SHA-256) is counted in `put` as it is taken."""
    for body in bodies:
        put[hashlib.sha256(body).digest()] += 1
        yield body


def compare(fault: str, url: str, put: Counter[bytes]) -> Outcome:
    """What was put into the journal against what is stored, row by row: not all of it fits into memory."""
    stored: Counter[bytes] = Counter()
    engine = create_engine(url)
    try:
        with engine.connect().execution_options(yield_per=1000) as connection:
            for (body,) in connection.execute(text("SELECT body FROM events")):
                stored[hashlib.sha256(body.encode()).digest()] += 1
    finally:
        engine.dispose()
    return Outcome(
        fault,
        1,
        acknowledged=put.total(),
        stored=stored.total(),
        lost=tuple(one.hex() for one in put - stored),
        duplicates=tuple(one.hex() for one, times in stored.items() if times > 1),
        altered=tuple(one.hex() for one in stored.keys() - put.keys()),
    )


def out_of_order(url: str) -> int:
    """How many events were stored later than one that had been sent later."""
    pairs = "SELECT sent_at, lag(sent_at) OVER (ORDER BY id) AS before FROM events"
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.scalar(text(f"SELECT count(*) FROM ({pairs}) AS pairs WHERE sent_at < before")) or 0
    finally:
        engine.dispose()


def peak_memory(receiver: Process) -> int:
    """The most bytes that the process ever had in memory."""
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].removesuffix("kB")) * 1024


def progress(receiver: Process) -> tuple[float, float]:
    """What has left the journal, and what is still in it."""
    metrics = receiver.metrics()
    moved = sum(value for (name, _), value in metrics.items() if name == "events_total")
    return moved, metrics["journal_events", frozenset()]


def post(receiver: Process, body: bytes) -> float:
    """Post a callback that is answered 200; returns after how many seconds."""
    began = time.perf_counter()
    assert receiver.post(body).status == 200
    return time.perf_counter() - began


def drain(receiver: Process, backlog: int, bodies: Iterator[bytes], answered: list[float]) -> list[tuple[float, float]]:
    """Post callbacks until the backlog is moved, and tell `answered` after how long; returns the progress seen."""
    seen = [progress(receiver)]
    advanced_at = time.monotonic()
    while seen[-1][0] < backlog:
        answered.append(post(receiver, next(bodies)))
        seen.append(progress(receiver))
        if seen[-1] != seen[-2]:
            advanced_at = time.monotonic()
        assert time.monotonic() < advanced_at + 60, f"no progress at {seen[-1]}"
        time.sleep(0.02)  # callbacks beside the drain, not instead of it
    wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
    return seen


def test_backlog(
    tmp_path: Path,
    database_url: str,
    backlog: int,
    record: Callable[[Outcome], None],
    remark: Callable[[str], None],
) -> None:
    """A large backlog delays neither start nor callbacks, drains in order and in little memory, and grows no file."""
    with closing(Database(database_url)) as database:
        database.migrate()
    put: Counter[bytes] = Counter()
    bodies = remembered(load_bodies(), put)
    journal = tmp_path / "var/journal.db"
    journal.parent.mkdir()
    fill(journal, islice(bodies, backlog))
    size = journal.stat().st_size
    began = time.perf_counter()
    environ = {"RECEIVER_DATABASE_URL": database_url, "RECEIVER_JOURNAL_KEEP": "0"}
    with running(tmp_path, tls=False, **environ) as receiver:
        assert receiver.operations("/readyz").status == 200
        ready = time.perf_counter() - began
        assert progress(receiver)[1] > 0
        answered: list[float] = []
        seen = drain(receiver, backlog, bodies, answered)
        drained = time.perf_counter() - began
        assert sum(0 < moved < backlog for moved, _ in seen) > 1
        assert all(before[0] <= after[0] and after[1] <= before[1] + 1 for before, after in pairwise(seen))
        peak = peak_memory(receiver)
        assert peak < 256 * MIB
        assert receiver.metric("journal_bytes") < MIB
        assert Path(f"{journal}-wal").stat().st_size < 17 * MIB  # as much as SQLite is told to keep, and a commit
        answered_after = [post(receiver, body) for body in islice(bodies, 50)]
        wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")
        assert journal.stat().st_size < size + MIB  # a page or two more whenever the log is brought into it
        assert receiver.stop() == 0
        assert receiver.log == ""
    kind = database_url.partition(":")[0].partition("+")[0]
    remark(
        f"{backlog} events to {kind}: ready after {ready:.1f} s, drained at {backlog / (drained - ready):.0f} a second,"
        f" at most {peak / MIB:.0f} MiB, median answer after {1000 * median(answered):.1f} ms meanwhile and"
        f" {1000 * median(answered_after):.1f} ms then"
    )
    with closing(sqlite3.connect(journal)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (0,)
    assert out_of_order(database_url) == 0
    record(compare(f"backlog of {backlog}, {kind}", database_url, put))
