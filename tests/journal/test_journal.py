from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery import Delivery, NotDurableError
from receiver.journal.journal import Journal, JournalError
from receiver.journal.record import decode
from receiver.journal.recovery import Readable
from receiver.metrics import Metrics
from tests.helpers.journal import (
    DELIVERIES,
    FULL,
    append,
    append_each,
    delivery,
    fill,
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

KIB, MIB = 2**10, 2**20


def bodies(journal: Journal) -> list[bytes]:
    return [one.body for one in waiting(journal)]


def test_second_opening_reads_what_was_appended(path: Path) -> None:
    """A delivery is read back after a close, equal to the last bit, in the order of arrival."""
    with opened(path) as journal:
        assert append(journal, *DELIVERIES) == ["", "", "", ""]
    with opened(path) as journal:
        assert waiting(journal) == DELIVERIES


def append_and_die(path: str) -> None:
    """Print each number once its delivery is on disk, then die at once."""

    async def run() -> None:
        journal = Journal(Path(path), MIB, Metrics(), asyncio.Event())
        for number, one in enumerate(numbered(20)):
            await journal.append(one)
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def test_append_is_done_after_the_commit(path: Path) -> None:
    """What was said to be on disk is there after kill -9."""
    code, printed = run_in_child(append_and_die, str(path))
    assert (code, printed.split()) == (-signal.SIGKILL, [str(number) for number in range(20)])
    with opened(path) as journal:
        assert bodies(journal) == [number.encode() for number in printed.split()]


def test_append_is_not_done_before_the_commit(path: Path) -> None:
    """As long as a delivery cannot be read, its append is not done."""
    with opened(path) as journal:

        async def run() -> None:
            done = journal.append(delivery(b"{}"))
            assert not done.done()
            assert await journal.read(0, 1) == []
            await done
            assert len(await journal.read(0, 1)) == 1

        asyncio.run(run())


@pytest.mark.parametrize(("count", "commits"), [(1, 1), (50, 1), (1000, 1), (2001, 3)])
def test_deliveries_that_arrive_together_share_a_commit(path: Path, count: int, commits: int) -> None:
    """All deliveries of one turn of the loop are one commit, of at most 1,000, and keep their order."""
    metrics = Metrics()
    with opened(path, metrics=metrics) as journal:
        append(journal, *numbered(count))
        assert sample(metrics, "journal_batch_events_count") == commits
        assert sample(metrics, "journal_batch_events_sum") == count
        assert sample(metrics, "journal_commit_duration_seconds_count") == commits
        assert bodies(journal) == [one.body for one in numbered(count)]


def test_deliveries_that_arrive_during_a_commit_share_the_next(path: Path) -> None:
    """What arrives while a commit is under way waits for the next one, in order."""
    metrics = Metrics()
    first, *others = numbered(10)
    with opened(path, metrics=metrics) as journal:

        async def run() -> None:
            done = journal.append(first)
            await asyncio.sleep(0)  # now the commit is under way
            await asyncio.gather(done, *map(journal.append, others))

        asyncio.run(run())
        assert sample(metrics, "journal_batch_events_count") == 2
        assert bodies(journal) == [one.body for one in numbered(10)]


def test_commit_tells_the_reader(path: Path) -> None:
    """A commit sets the event that the projector waits for, and opening does not."""
    new_deliveries = asyncio.Event()
    journal = Journal(path, MIB, Metrics(), new_deliveries)
    assert not new_deliveries.is_set()
    append(journal, delivery(b""))
    assert new_deliveries.is_set()
    journal.close()


def test_flush_waits_for_the_disk(path: Path) -> None:
    """After a flush nothing waits for the disk; with nothing waiting it returns at once."""
    with opened(path) as journal:

        async def run() -> None:
            await journal.flush()
            waiting = [journal.append(one) for one in numbered(1500)]
            await journal.flush()
            assert all(done.done() for done in waiting)

        asyncio.run(run())


def test_what_is_stored_goes(path: Path) -> None:
    """What is stored is gone for good, what came later stays, and new deliveries come after it."""
    with opened(path) as journal:
        append_each(journal, *numbered(5))
        store(journal, read(journal, 0, 3)[-1].id)
    with opened(path) as journal:
        append(journal, delivery(b"new"))
        assert bodies(journal) == [b"3", b"4", b"new"]
        store(journal, read(journal, 0, 10)[-1].id)
        assert read(journal, 0, 10) == []
    with opened(path) as journal:
        assert read(journal, 0, 10) == []


def test_read_goes_on_behind_an_id(path: Path) -> None:
    """A read gives what is behind an id, whether or not what is before it is stored meanwhile."""
    with opened(path) as journal:
        append_each(journal, *numbered(5))
        second = read(journal, 0, 2)[-1].id
        for stored in (0, second, second + 1):
            store(journal, stored)
            assert [record.id for record in read(journal, second, 10)] == [3, 4, 5][max(0, stored - second) :]
        assert read(journal, 5, 10) == []


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [([1] * 5, 3, 3), ([1] * 5, 5, 5), ([3 * MIB] * 4, 100, 2), ([9 * MIB, 1], 100, 1), ([1, 9 * MIB, 1], 100, 1)],
)
def test_read_is_limited(path: Path, sizes: list[int], limit: int, expected: int) -> None:
    """A read gives the oldest records: of at most `limit` deliveries and 8 MiB together, and at least one."""
    with opened(path) as journal:
        append_each(journal, *(delivery(bytes(size)) for size in sizes))
        found = read(journal, 0, limit)
        assert [len(one.body) for record in found for one in decode(record.data)] == sizes[:expected]
        assert read(journal, 0, limit) == found


def test_record_of_many_deliveries_is_read_as_one(path: Path) -> None:
    """Deliveries that shared a commit are read together, though they are more than the limit, and nothing with them."""
    with opened(path) as journal:
        append_each(journal, *numbered(2))
        append(journal, *numbered(1000))
        append(journal, delivery(b""))
        assert [record.deliveries for record in read(journal, 0, 500)] == [1, 1]
        assert [record.deliveries for record in read(journal, 2, 500)] == [1000]


@pytest.mark.parametrize(
    ("sizes", "commits"), [([MIB] * 4, 1), ([MIB] * 9, 3), ([5 * MIB, 1, 1], 2), ([1, 5 * MIB, 1], 3)]
)
def test_commit_is_limited(path: Path, sizes: list[int], commits: int) -> None:
    """A commit takes at most 4 MiB of bodies, or one that is larger; what is over shares the next one, in order."""
    metrics = Metrics()
    with opened(path, metrics=metrics) as journal:
        assert append(journal, *(delivery(bytes(size)) for size in sizes)) == [""] * len(sizes)
        assert sample(metrics, "journal_batch_events_count") == commits
        found: list[int] = []
        while batch := read(journal, 0, 10):
            found += [len(one.body) for record in batch for one in decode(record.data)]
            store(journal, batch[-1].id)
        assert found == sizes


def test_full_journal_recovers(path: Path) -> None:
    """A full journal takes no more, keeps what it took within its size, and takes more once something was removed."""
    metrics = Metrics()
    with opened(path, MIB, metrics) as journal:
        taken = fill(journal)
        assert append(journal, *numbered(2, 64 * KIB)) == [FULL, FULL]
        assert bodies(journal) == taken
        assert sample(metrics, "journal_events") == len(taken)
        assert sample(metrics, "journal_bytes") <= MIB
        store(journal, read(journal, 0, len(taken) // 2)[-1].id)
        assert append(journal, delivery(b"new")) == [""]
        assert bodies(journal) == [*taken[len(taken) // 2 :], b"new"]
    assert path.stat().st_size <= MIB


def test_check_tells_whether_the_journal_takes_writes(path: Path) -> None:
    """A check passes on an empty journal, leaves nothing behind, and fails on a full one until there is room."""
    metrics = Metrics()
    with opened(path, MIB, metrics) as journal:
        asyncio.run(journal.check())
        assert bodies(journal) == []
        assert sample(metrics, "journal_events") == 0
        taken = fill(journal)
        with pytest.raises(NotDurableError, match=FULL):
            asyncio.run(journal.check())
        assert bodies(journal) == taken
        store(journal, read(journal, 0, 10)[-1].id)
        asyncio.run(journal.check())


def test_full_journal_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that the journal is down and one that it is up again, though it can be read all the while."""
    with opened(path, MIB) as journal:
        while append(journal, *numbered(1, 64 * KIB)) != [FULL]:
            assert not caplog.records
        for one in numbered(3, 64 * KIB):
            assert read(journal, 0, 1)
            assert append(journal, one) == [FULL]
        store(journal, read(journal, 0, 1000)[-1].id)
        assert append(journal, *numbered(3)) == ["", "", ""]
    assert [record.message for record in caplog.records] == ["journal down", "journal up again"]


def test_too_many_waiting_bytes_are_refused_at_once(path: Path) -> None:
    """At most 64 MiB wait in memory for the disk; one more is refused at once, and there is room again afterwards."""
    metrics = Metrics()
    with opened(path, metrics=metrics) as journal:

        async def run() -> None:
            waiting = [journal.append(delivery(bytes(16 * MIB))) for _ in range(4)]
            refused = journal.append(delivery(b"x"))
            assert refused.done()
            with pytest.raises(NotDurableError, match="the disk does not keep up"):
                refused.result()
            await asyncio.gather(*waiting)
            await journal.append(delivery(b"x"))

        asyncio.run(run())
        assert sample(metrics, "journal_events") == 5


def test_cancelled_waiter_hurts_nobody(path: Path) -> None:
    """A client that goes away while its delivery is written neither loses it nor disturbs the others."""
    with opened(path) as journal:

        async def run() -> None:
            first, second, third = (journal.append(one) for one in numbered(3))
            second.cancel()
            async with asyncio.timeout(60):
                await asyncio.gather(first, third)
                await journal.append(delivery(b"3"))

        asyncio.run(run())
        assert bodies(journal) == [b"0", b"1", b"2", b"3"]


def open_and_tell(path: str) -> None:
    """Print what comes of opening the journal."""
    try:
        Journal(Path(path), MIB, Metrics(), asyncio.Event()).close()
    except JournalError as error:
        sys.stdout.write(str(error))
    else:
        sys.stdout.write("opened")


def test_second_process_is_refused(path: Path) -> None:
    """A second receiver on the same journal does not start, and says why; after the first one's end it does."""
    with opened(path) as journal:
        append(journal, delivery(b"0"))
        assert run_in_child(open_and_tell, str(path)) == (
            0,
            f"{path} is in use by another receiver: stop that one, or set `journal` to another file",
        )
        assert append(journal, delivery(b"1")) == [""]
        assert bodies(journal) == [b"0", b"1"]
    assert run_in_child(open_and_tell, str(path)) == (0, "opened")


def overwrite(path: Path, start: int) -> Path:
    """A journal that is damaged from byte `start` on."""
    with opened(path) as journal:
        append(journal, *numbered(100, KIB))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (size - start))
    return path


def regular_file(path: Path, text: str) -> Path:
    path.parent.mkdir()
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "make",
    [lambda path: regular_file(path, "") / "journal.db", lambda path: path.parent.parent],
    ids=["below a file", "a directory"],
)
def test_journal_that_cannot_be_opened(path: Path, make: Callable[[Path], Path]) -> None:
    """What cannot be a journal is refused with its name and the remedy."""
    journal = make(path)
    with pytest.raises(JournalError, match="set `journal` to a file on a local disk") as caught:
        Journal(journal, MIB, Metrics(), asyncio.Event())
    assert str(caught.value).startswith(f"{journal} ")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: regular_file(path, "No database. " * 500),
        lambda path: overwrite(path, 100),
        lambda path: overwrite(path, 4096),
    ],
    ids=["no database", "damaged schema", "damaged table"],
)
def test_damaged_journal_is_moved_aside(
    path: Path, make: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged journal is kept, byte for byte, under a name that the log tells, and a new one takes its place."""
    before = make(path).read_bytes()
    for number in range(2):
        with opened(path) as journal:
            assert append(journal, delivery(b"new")) == [""]
            (moved,) = [record for record in caplog.records if record.message == "journal damaged, moved aside"]
            aside = Path(vars(moved)["moved_to"])
            assert aside.name.startswith("journal.db.damaged-")
            assert aside.read_bytes() == before
            assert bodies(journal) == [b"new"] * (number + 1)


def test_damage_that_is_found_while_it_runs(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damage that is found while the journal is used costs no callback: the new journal takes the delivery at once."""
    computes()
    with opened(path) as journal:
        append_each(journal, *numbered(3000, KIB))
        store(journal, read(journal, 0, 500)[-1].id)
    trunk = int.from_bytes(path.read_bytes()[32:36], "big") - 1  # the first page of the list of free ones
    with path.open("r+b") as file:
        file.seek(trunk * 4096)
        file.write(b"\xff" * 4096)
    with opened(path) as journal:
        assert append(journal, *numbered(20, KIB)) == [""] * 20
        assert bodies(journal) == [one.body for one in numbered(20, KIB)]
        assert len(list(Readable(journal.damaged.get()))) == 2500
    assert [record.message for record in caplog.records] == ["journal damaged, moved aside"]


def run(journal: Journal, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """What `work` finds with the journal's own connection, which shows what no other one does."""
    return journal._thread.submit(journal._file._attempt, lambda connection, _: work(connection)).result()  # noqa: SLF001


def test_pragmas(path: Path) -> None:
    """The file is in WAL mode, syncs each commit, is this process's alone and has its largest size."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive", "max_page_count": 256}

    def read_back(connection: sqlite3.Connection) -> dict[str, Any]:
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}

    for _ in ("a new file", "the same again"):
        with opened(path, MIB) as journal:
            assert run(journal, read_back) == wanted


def test_empty_body_is_synced_too(path: Path) -> None:
    """A commit is synced also where all bodies in it are empty."""

    def synchronous(connection: sqlite3.Connection) -> Any:
        return connection.execute("PRAGMA synchronous").fetchone()[0]

    with opened(path) as journal:
        append_each(journal, *numbered(2))
        store(journal, read(journal, 0, 1)[-1].id)
        append(journal, delivery(b""))
        assert run(journal, synchronous) == 2


def test_log_of_the_last_run_is_emptied_first(path: Path) -> None:
    """What an ended process has left in the log is in the file, and synced, before anything is written behind it."""
    run_in_child(append_and_die, str(path))
    log = Path(f"{path}-wal")
    assert log.stat().st_size > 0
    with opened(path) as journal:
        assert log.stat().st_size == 0
        assert len(bodies(journal)) == 20


def test_removal_writes_little(path: Path) -> None:
    """Removing large deliveries needs no space of their size: a disk that they have filled has none."""
    log = Path(f"{path}-wal")
    with opened(path) as journal:
        append_each(journal, *numbered(20, MIB))
    with opened(path) as journal:
        assert log.stat().st_size == 0
        store(journal, read(journal, 0, 5)[-1].id)
        assert read(journal, 0, 1)[0].id == 6
        assert 0 < log.stat().st_size < 100 * KIB


def test_metrics_from_the_start(path: Path) -> None:
    """What an earlier run left shows at once, and the metrics follow each append and removal."""
    metrics = Metrics()

    def shown() -> list[float]:
        return [sample(metrics, f"journal_{name}") for name in ("events", "oldest_timestamp_seconds")]

    deliveries = [Delivery("default", float(second), 0.0, b"", bytes(64 * KIB)) for second in (1000, 999, 1001, 998)]
    with opened(path, metrics=metrics) as journal:
        assert sample(metrics, "journal_events") == 0
        assert math.isnan(sample(metrics, "journal_oldest_timestamp_seconds"))
        append(journal, deliveries[0])
        append(journal, *deliveries[1:])
    metrics = Metrics()
    with opened(path, metrics=metrics) as journal:
        assert shown() == [4, 1000]
        assert 4 * 64 * KIB <= sample(metrics, "journal_bytes") <= 5 * 64 * KIB
        store(journal, read(journal, 0, 1)[0].id)
        assert shown() == [3, 998]
        append(journal, delivery(b""))
        assert shown() == [4, 998]
        store(journal, read(journal, 0, 10)[-1].id)
        assert sample(metrics, "journal_events") == 0
        assert math.isnan(sample(metrics, "journal_oldest_timestamp_seconds"))
        assert sample(metrics, "journal_bytes") < 64 * KIB


def test_largest_size_is_exported(path: Path) -> None:
    """The setting journal_max_bytes shows beside the bytes in use, so that an alert can be a ratio."""
    metrics = Metrics()
    with opened(path, 8 * MIB, metrics):
        assert sample(metrics, "journal_max_bytes") == 8 * MIB


def fill_disk(folder: Path) -> Callable[[], None]:
    """Leave no byte on the file system of `folder`; returns what undoes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast.unlink


def limit_file_size(_folder: Path) -> Callable[[], None]:
    """Let the kernel refuse every write to a file of this process; returns what undoes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fail_and_recover(folder: str, outage: str) -> None:
    """Append before, during and after an outage of the disk, and print what came of it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    metrics = Metrics()
    with opened(Path(folder, "journal.db"), 2**30, metrics) as journal:
        before = append(journal, delivery(b"before"))
        end_outage = globals()[outage](Path(folder))
        during = [append(journal, *numbered(2, 64 * KIB)) for _ in range(3)]
        try:
            asyncio.run(journal.check())
        except NotDurableError as error:
            during.append([str(error)])
        end_outage()
        after = append(journal, delivery(b"after"))
        events = sample(metrics, "journal_events")
    with opened(Path(folder, "journal.db"), 2**30, metrics) as journal:
        kept = [body.decode() for body in bodies(journal)]
    sys.stdout.write(json.dumps([before, during, after, events, kept, lines]))


@pytest.mark.parametrize("wanted", ["the disk is full", "the disk fails"])
def test_disk_that_fails_and_recovers(tmp_path: Path, wanted: str) -> None:
    """While the disk takes nothing each append fails, once logged; then all goes on by itself with nothing lost."""
    # No space left (the kernel's own ENOSPC) needs a file system to fill; without the right to mount, EFBIG stands in.
    within = small_disk(tmp_path) if wanted == "the disk is full" else ()
    outage, problem = (fill_disk, FULL) if within else (limit_file_size, "the journal's disk fails: disk I/O error")
    code, printed = run_in_child(fail_and_recover, str(tmp_path), outage.__name__, within=within)
    assert code == 0
    before, during, after, events, kept, lines = json.loads(printed)
    assert (before, after) == ([""], [""])
    assert during == [[problem] * 2] * 3 + [[problem]]
    assert lines == ["journal down", "journal up again"]
    assert kept == ["before", "after"]
    assert events == 2
