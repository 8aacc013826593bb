"""What is stored stays in the journal for a while, and never in the way of what comes."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.metrics import Metrics
from tests.helpers.journal import (
    FULL,
    append,
    append_each,
    delivery,
    fill,
    kept,
    numbered,
    opened,
    read,
    sample,
    store,
    waiting,
)

KIB, MIB = 2**10, 2**20
LONG = 3600


def test_what_is_stored_stays(path: Path) -> None:
    """What is stored counts as waiting no more, is no longer read, and can be read apart, also after a restart."""
    for number in range(2):
        metrics = Metrics()
        with opened(path, metrics=metrics, keep=LONG) as journal:
            assert kept(journal) == numbered(3 * number)
            append_each(journal, *numbered(3 * number + 5)[3 * number :])
            store(journal, 3 * number + 3)
            assert waiting(journal) == numbered(3 * number + 5)[3 * number + 3 :]
            assert kept(journal) == numbered(3 * number + 3)
            assert sample(metrics, "journal_events") == 2
            store(journal, 3 * number + 5)
            assert sample(metrics, "journal_events") == sample(metrics, "journal_bytes") == 0
            assert math.isnan(sample(metrics, "journal_oldest_timestamp_seconds"))
            asyncio.run(journal.remove_expired())
            assert kept(journal) == numbered(3 * number + 5)
        with opened(path, metrics=metrics, keep=LONG) as journal:
            assert waiting(journal) == []
        path.unlink()
        with opened(path, keep=LONG) as journal:
            append_each(journal, *numbered(3))
            store(journal, 3)


def test_nothing_is_kept(path: Path) -> None:
    """Where nothing is to be kept, what is stored goes at once, and what another run has kept goes with it."""
    with opened(path, keep=LONG) as journal:
        append_each(journal, *numbered(5))
        store(journal, 3)
    with opened(path) as journal:
        store(journal, 4)
        assert (kept(journal), waiting(journal)) == ([], numbered(5)[4:])


def test_it_goes_after_a_while(path: Path) -> None:
    """What is stored goes after the time to keep it and not before, also where a restart is in between."""
    now = [0.0]
    with opened(path, keep=10, clock=lambda: now[0]) as journal:
        append_each(journal, *numbered(3))
        store(journal, 2)
        for now[0] in (0.5, 5.0, 10.4):
            asyncio.run(journal.remove_expired())
            assert kept(journal) == numbered(2)
        now[0] = 10.6
        asyncio.run(journal.remove_expired())
        assert (kept(journal), waiting(journal)) == ([], numbered(3)[2:])
        store(journal, 3)
    with opened(path, keep=10, clock=lambda: now[0]) as journal:
        assert kept(journal) == numbered(3)[2:]
        now[0] = 21
        asyncio.run(journal.remove_expired())
        assert kept(journal) == []
        assert append(journal, delivery(b"new")) == [""]
        assert waiting(journal) == [delivery(b"new")]


def test_keeping_begins_anew(path: Path) -> None:
    """What is offered to the database again is kept as long again."""
    now = [0.0]
    with opened(path, keep=10, clock=lambda: now[0]) as journal:
        append_each(journal, *numbered(3))
        store(journal, 3)
        now[0] = 6
        asyncio.run(journal.restart_keeping())
        now[0] = 12
        asyncio.run(journal.remove_expired())
        assert kept(journal) == numbered(3)


def test_kept_makes_room(path: Path) -> None:
    """However much is kept, what comes is taken, in a journal that is never larger; the youngest stays."""
    with opened(path, MIB, keep=LONG) as journal:
        for number, one in enumerate(numbered(100, 64 * KIB), 1):
            assert append(journal, one) == [""]
            asyncio.run(journal.check())
            store(journal, number)
        youngest = kept(journal)
        assert 8 <= len(youngest) <= 16
        assert youngest == numbered(100, 64 * KIB)[-len(youngest) :]
    assert path.stat().st_size <= MIB


def test_journal_is_full_without_what_is_kept(path: Path) -> None:
    """A journal takes as much with kept records as without, and is full then."""
    with opened(path, MIB) as journal:
        without = len(fill(journal))
    path.unlink()
    metrics = Metrics()
    with opened(path, MIB, metrics, keep=LONG) as journal:
        append_each(journal, *numbered(10, 64 * KIB))
        store(journal, 10)
        assert abs(len(fill(journal)) - without) <= 3
        assert kept(journal) == []
        assert append(journal, delivery(bytes(64 * KIB))) == [FULL]
        assert MIB * 0.9 < sample(metrics, "journal_bytes") <= MIB


@pytest.mark.parametrize("change", ["UPDATE position SET stored = stored + 1", "DELETE FROM position"])
def test_damaged_position(path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where it is no longer known what is stored, all is offered again, and nothing else happens."""
    with opened(path, keep=LONG) as journal:
        append_each(journal, *numbered(5))
        store(journal, 3)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    with opened(path, keep=LONG) as journal:
        assert waiting(journal) == numbered(5)
        store(journal, read(journal, 0, 2)[-1].id)
        assert waiting(journal) == numbered(5)[2:]
    assert caplog.records == []


def test_position_behind_the_last_row(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that are missing at the end are noticed where they are known to have been stored."""
    with opened(path, keep=LONG) as journal:
        append_each(journal, *numbered(5))
        store(journal, 5)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM records WHERE id > 3")
    with opened(path, keep=LONG) as journal:
        assert waiting(journal) == []
        assert append(journal, delivery(b"new")) == [""]
    assert [record.message for record in caplog.records] == ["journal damaged, moved aside"]
