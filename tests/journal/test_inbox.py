"""A journal of version 0.1, which had a row a delivery."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery import Delivery
from receiver.journal import inbox, table
from receiver.journal.recovery import Readable, UnreadableError
from receiver.metrics import Metrics
from tests.helpers.journal import (
    DELIVERIES,
    FULL,
    append,
    delivery,
    make_half_taken_over,
    make_inbox,
    numbered,
    opened,
    read,
    run_in_child,
    sample,
    small_disk,
    store,
    waiting,
)
from tests.helpers.quick import computes

MIB = 2**20
COUNT = 4500


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@pytest.mark.parametrize("first_id", [1, 4711])
def test_it_is_taken_over(path: Path, first_id: int) -> None:
    """What waits in it waits on, equal to the last bit and in order, before what comes then; the old table is gone."""
    old = [*DELIVERIES, *numbered(COUNT)]
    make_inbox(path, old, first_id)
    metrics = Metrics()
    with opened(path, metrics=metrics) as journal:
        assert sample(metrics, "journal_events") == len(old)
        append(journal, delivery(b"new"))
        assert waiting(journal) == [*old, delivery(b"new")]
    assert tables(path) == {"records", "position"}


def test_empty_one_is_taken_over(path: Path) -> None:
    """One that holds nothing is a new journal."""
    make_inbox(path, [])
    with opened(path) as journal:
        assert waiting(journal) == []
        assert append(journal, delivery(b"new")) == [""]
    assert tables(path) == {"records", "position"}


def die_in_chunk(path: str, chunk: str) -> None:
    """Die in the middle of a chunk."""
    left = iter(range(int(chunk), -1, -1))
    insert = table.insert

    def insert_or_die(*arguments: Any) -> Any:
        result = insert(*arguments)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(inbox, "insert", insert_or_die)  # noqa: B010 (mypy: not exported)
    with opened(Path(path)):
        pass


def test_death_on_the_way(path: Path) -> None:
    """A process that is killed while it takes a journal over, again and again, loses nothing and no order."""
    make_inbox(path, numbered(COUNT))
    for chunk in (0, 1, 2, 0, 1):
        assert run_in_child(die_in_chunk, str(path), str(chunk))[0] == -signal.SIGKILL
    assert tables(path) == {"inbox", "records", "position"}
    assert sorted(int(one.body) for one in Readable(path)) == list(range(COUNT))
    with opened(path) as journal:
        assert waiting(journal) == numbered(COUNT)


def test_full_one_is_taken_over(path: Path) -> None:
    """One that has reached the largest size is taken over within it, but for the two new tables' first pages."""
    computes()
    old = numbered(600, 64 * 2**10)
    make_inbox(path, old)
    with closing(sqlite3.connect(path)) as connection:  # bring the WAL into the file
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with opened(path, size) as journal:
        found: list[Delivery] = []
        while batch := waiting(journal, 50):
            found += batch
            store(journal, read(journal, 0, 50)[-1].id)
        assert found == old
    assert path.stat().st_size <= size + 2 * 4096


@pytest.mark.parametrize(
    "change",
    ["received_at = 1e300", "sent_at = -1", "sent_at = 'x'", "endpoint = CAST(X'66ff' AS TEXT)", "body = 'text'"],
)
def test_damaged_one(path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    """A row that was never written costs nothing but itself: the file is moved aside, and the rest can be recovered."""
    make_inbox(path, numbered(20))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE inbox SET {change} WHERE id = 5")
    with opened(path) as journal:
        source = Readable(journal.damaged.get())
        assert bodies(list(source)) == bodies([one for number, one in enumerate(numbered(20), 1) if number != 5])
        assert source.lost == 1
        assert append(journal, delivery(b"new")) == [""]
    assert [record.message for record in caplog.records] == ["journal damaged, moved aside"]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [one.body for one in deliveries]


def test_new_table_that_cannot_be_read(path: Path) -> None:
    """Of a journal that was being taken over the old table is read also where the new one cannot be, which is said."""
    make_half_taken_over(path, numbered(COUNT))
    found: list[int] = []
    with pytest.raises(UnreadableError, match="malformed"):
        found += (int(one.body) for one in Readable(path))
    assert found == list(range(COUNT))


def take_over_on_a_full_disk(folder: str) -> None:
    """Open a journal of version 0.1 while its disk is full and after; print what came of it."""
    path = Path(folder, "journal.db")
    make_inbox(path, numbered(200, 1000))
    ballast = Path(folder, "ballast")
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    with opened(path) as journal:
        during = append(journal, delivery(b"refused"))
        ballast.unlink()
        after = append(journal, delivery(b"new"))
        print(json.dumps([during, after, waiting(journal) == [*numbered(200, 1000), delivery(b"new")]]))  # noqa: T201


def test_full_disk(tmp_path: Path) -> None:
    """Where the disk has no room to take a journal over, it says so and takes nothing; then all is there."""
    within = small_disk(tmp_path)
    if not within:
        pytest.skip("a small disk cannot be mounted here")
    assert run_in_child(take_over_on_a_full_disk, str(tmp_path), within=within) == (
        0,
        '[["' + FULL + '"], [""], true]\n',
    )
