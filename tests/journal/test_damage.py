"""Damage of the journal's file, also where SQLite, which has no checksums, does not see it."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from receiver.delivery import NotDurableError
from receiver.journal import damaged, file, record, table
from receiver.journal.journal import Journal
from receiver.journal.record import decode, encode
from receiver.journal.recovery import Readable, UnreadableError
from tests.helpers.journal import Deaths, append, append_each, delivery, numbered, opened, read, run_in_child, store
from tests.helpers.quick import computes

PAGE, SECTOR = 4096, 512


def drain(journal: Journal) -> list[bytes]:
    """The bodies of all that is read and removed, as the projector does, and of what was moved aside, each once."""
    found: list[bytes] = []
    for _ in range(40):
        try:
            batch = read(journal, 0, 50)
            found += [one.body for row in batch for one in decode(row.data)]
            if not batch:
                return list(dict.fromkeys(found + recovered(journal)))
            store(journal, batch[-1].id)
        except NotDurableError:
            continue
    return pytest.fail("the journal is never empty")


def recovered(journal: Journal) -> list[bytes]:
    """What can be read of the files that were moved aside, which stay as they are."""
    found: list[bytes] = []
    while not journal.damaged.empty():
        path = journal.damaged.get_nowait()
        before = content(path)
        with suppress(UnreadableError):
            found += [one.body for one in Readable(path)]
        assert content(path) == before
    return found


def content(path: Path) -> dict[str, bytes]:
    """The file and all that SQLite keeps beside it."""
    return {one.name: one.read_bytes() for one in path.parent.glob(f"{path.name}*")}


def spoil(path: Path, statement: str) -> list[bytes]:
    """Twenty deliveries, of which a row is changed by `statement`; returns the bodies as they were."""
    deliveries = numbered(20)
    with opened(path) as journal:
        append_each(journal, *deliveries)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    return [one.body for one in deliveries]


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere(path: Path, seed: int) -> None:
    """Wherever a sector or byte is damaged, what is not on its page or beside it goes its way, and what comes then."""
    computes()
    with opened(path) as journal:
        append_each(journal, *numbered(300, 250))
    good = path.read_bytes()
    chance = random.Random(seed)
    for _ in range(100):
        for old in path.parent.iterdir():
            old.unlink()
        length = chance.choice((1, 64, SECTOR))
        # The first page has the schema and the second is the root: without them nothing can be read.
        start = chance.randrange(2 * PAGE // SECTOR, len(good) // SECTOR) * SECTOR + chance.randrange(
            SECTOR - length + 1
        )
        damage = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
        path.write_bytes(good[:start] + damage + good[start + length :])
        with opened(path) as journal:
            found = drain(journal)
            assert len({one.body for one in numbered(300, 250)} - set(found)) <= 2 * PAGE // 250, start
            assert append(journal, delivery(b"new")) == [""]
            assert drain(journal) == [b"new"]


def crash(path: str) -> None:
    """Leave a file and a WAL, each of which has a part of the deliveries, of which some are stored; die."""
    with opened(Path(path)) as journal:
        append_each(journal, *numbered(150, 250))
    with opened(Path(path)) as journal:
        append_each(journal, *numbered(250, 250)[150:])
        store(journal, read(journal, 0, 20)[-1].id)
        append_each(journal, *numbered(300, 250)[250:])
        os._exit(9)


@pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_DAMAGE", "4"))))
def test_no_damage_goes_unseen(path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is damaged, of the file or of a WAL left by a crash, costs nothing or is said; nothing is altered."""
    assert run_in_child(crash, str(path))[0] == 9
    good = content(path)
    before = {one.body for one in numbered(300, 250)}
    waiting = {one.body for one in numbered(300, 250)[20:]}
    chance = random.Random(seed)
    unseen = 0
    for _ in range(100):
        for old in path.parent.iterdir():
            old.unlink()
        caplog.clear()
        name = chance.choice(list(good))
        length = chance.choice((1, 1, 64, SECTOR))
        start = chance.randrange(len(good[name]) // SECTOR) * SECTOR + chance.randrange(SECTOR - length + 1)
        old_bytes = good[name][start : start + length]
        flipped = bytes(one ^ (1 << chance.randrange(8)) for one in old_bytes)
        damage = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length), flipped))
        for one, pages in good.items():
            path.with_name(one).write_bytes(pages)
        with path.with_name(name).open("r+b") as damaged_file:
            damaged_file.seek(start)
            damaged_file.write(damage)
        with opened(path) as journal:
            found = set(drain(journal))
        said = "journal damaged, moved aside" in [record.message for record in caplog.records]
        assert found <= before, (name, start, damage)
        assert said or found >= waiting, (name, start, damage)
        unseen += not said
    assert 0 < unseen < 90


@pytest.mark.parametrize(
    "change",
    [
        "oldest = oldest + 1",
        "oldest = 'x'",
        "deliveries = 2",
        "deliveries = 'x'",
        "crc = crc + 1",
        "data = 'text'",
        "data = x'00' || substr(data, 2)",
        "data = replace(data, '4', '5')",
        "(deliveries, oldest, crc, data) = (SELECT deliveries, oldest, crc, data FROM records WHERE id = 6)",
    ],
)
def test_row_that_was_never_written(path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    """A row that no delivery was written as is left in the file that is moved aside; the others go their way."""
    before = spoil(path, f"UPDATE records SET {change} WHERE id = 5")
    with opened(path) as journal:
        assert drain(journal) == [body for number, body in enumerate(before, 1) if number != 5]
    (moved,) = [record for record in caplog.records if record.message == "journal damaged, moved aside"]
    with closing(sqlite3.connect(vars(moved)["moved_to"])) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE id = 5").fetchone() == (1,)


@pytest.mark.parametrize("row", [1, 25, 50])
@pytest.mark.parametrize("wrong", [3, 127])
def test_row_with_a_wrong_id(path: Path, row: int, wrong: int) -> None:
    """Nothing is removed that was not read, wherever in a batch an id is damaged."""
    before = [one.body for one in numbered(300, 250)]
    with opened(path) as journal:
        append_each(journal, *numbered(300, 250))
    pages = path.read_bytes()
    at = place_of_id(pages, row)
    path.write_bytes(pages[:at] + bytes([wrong]) + pages[at + 1 :])
    with opened(path) as journal:
        assert set(drain(journal)) == set(before)


@pytest.mark.parametrize("is_large", [False, True])
def test_rows_that_are_gone_at_the_end(
    path: Path, *, is_large: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that says it has fewer rows than it has is noticed, also in a file too large to be checked as a whole."""
    with opened(path) as journal:
        append_each(journal, *numbered(300, 250))
    if is_large:
        monkeypatch.setattr(file, "_LARGEST_CHECK_BYTES", 0)
    else:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM position")
    pages = bytearray(path.read_bytes())
    # A leaf of a table whose cells hold the last body.
    page = pages.rindex(numbered(300, 250)[-1].body) // PAGE * PAGE
    assert pages[page] == 0x0D
    cells = int.from_bytes(pages[page + 3 : page + 5], "big")
    pages[page + 3 : page + 5] = (cells - 1).to_bytes(2, "big")
    path.write_bytes(pages)
    with opened(path) as journal:
        assert len(drain(journal)) == 299
    assert [record.message for record in caplog.records] == ["journal damaged, moved aside"]


def test_last_id_that_is_not_known(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the id of the last row is not noted, or damaged, all rows are taken as they are."""
    before = spoil(path, "UPDATE position SET stored = stored + 1 WHERE one = 2")
    with opened(path) as journal:
        assert drain(journal) == before
    assert caplog.records == []


def place_of_id(pages: bytes, row: int) -> int:
    """Where the id of a row, below 128, is in a file of SQLite's format, in which all rows have 128 to 16,383 bytes."""
    for page in range(PAGE, len(pages), PAGE):
        cells = int.from_bytes(pages[page + 3 : page + 5], "big") if pages[page] == 0x0D else 0  # a table's leaf
        for pointer in range(page + 8, page + 8 + 2 * cells, 2):
            at = page + int.from_bytes(pages[pointer : pointer + 2], "big") + 2  # behind the size
            if pages[at] == row:
                return at
    return pytest.fail(f"there is no row {row}")


def die_at_step(path: str, step: str) -> None:
    """Find damage while the WAL has the only copy of five deliveries, and die before a step of moving it aside."""
    deaths = Deaths(int(step))
    with opened(Path(path)) as journal:
        assert append_each(journal, *numbered(25)[20:]) == [""] * 5
        for owner, name in (
            (Path, "rename"),
            (damaged, "sync_directory"),
            (file, "move_wal"),
            (file, "_set_up"),
            (table, "read"),
        ):
            deaths.before(owner, name)
        read(journal, 0, 100)
    os._exit(8)


@pytest.mark.parametrize(
    "step",
    range(1, 8),
    ids=["file", "sync of the file", "WAL", "sync of the WAL", "look for a WAL", "new file", "use of the new file"],
)
def test_death_while_it_is_moved_aside(path: Path, step: int) -> None:
    """A process that ends while a damaged journal is moved aside costs nothing of what can be read of it."""
    before = spoil(path, "UPDATE records SET oldest = 0 WHERE id = 1")
    assert run_in_child(die_at_step, str(path), str(step))[0] == 9
    assert sum(one.stat().st_size for one in path.parent.glob("*-wal")) > 0
    with opened(path) as journal:
        assert sorted(drain(journal)) == sorted(before[1:] + [one.body for one in numbered(25)[20:]])
        assert append(journal, delivery(b"new")) == [""]
        assert drain(journal) == [b"new"]


def test_move_that_fails_half_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk fails while a journal is moved aside, nothing of the new one counts as stored unread."""
    before = spoil(path, "UPDATE records SET oldest = 0 WHERE id = 15")
    with opened(path) as journal:
        last_id = read(journal, 0, 10)[-1].id
        with monkeypatch.context() as failing:
            failing.setattr(damaged, "sync_directory", fail)
            with pytest.raises(NotDurableError):
                read(journal, last_id, 20)
        new = [delivery(b"new %d" % number) for number in range(10)]
        assert append_each(journal, *new) == [""] * 10
        store(journal, last_id)
        assert drain(journal) == [one.body for one in new]
    with opened(path) as journal:
        assert drain(journal) == before[:14] + before[15:]


def fail(_path: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_empty_file_does_not_cost_its_wal(path: Path) -> None:
    """Where the file has become empty and its WAL has not, both are kept: SQLite would remove the WAL."""
    assert run_in_child(append_and_die, str(path))[0] == 9
    wal = Path(f"{path}-wal").read_bytes()
    path.write_bytes(b"")
    with opened(path) as journal:
        kept = journal.damaged.get_nowait()
        with pytest.raises(UnreadableError, match="empty"):
            list(Readable(kept))
        assert Path(f"{kept}-wal").read_bytes() == wal
        assert append(journal, delivery(b"new")) == [""]


def test_wal_without_a_file_is_kept(path: Path) -> None:
    """A WAL whose file somebody has removed is not brought into the new one, and is kept."""
    assert run_in_child(append_and_die, str(path))[0] == 9
    wal = Path(f"{path}-wal").read_bytes()
    path.unlink()
    with opened(path) as journal:
        assert read(journal, 0, 10) == []
    assert [one.read_bytes() for one in path.parent.glob("*.damaged-*-wal")] == [wal]


def append_and_die(path: str) -> None:
    """Leave a WAL."""
    with opened(Path(path)) as journal:
        append_each(journal, *numbered(20))
        os._exit(9)


def test_journal_in_use_is_not_read(path: Path) -> None:
    """The journal of a running receiver is refused, and goes on as if nothing had been."""
    with opened(path) as journal:
        append_each(journal, *numbered(20))
        assert run_in_child(read_and_tell, str(path)) == (0, "it is in use")
        assert append(journal, delivery(b"new")) == [""]
        assert len(drain(journal)) == 21


def read_and_tell(path: str) -> None:
    """Print why a journal cannot be read."""
    try:
        list(Readable(Path(path)))
    except UnreadableError as error:
        sys.stdout.write(str(error))


@pytest.mark.parametrize("name", ["journal.db", "a journal #1?%.db"])
def test_sound_journal_is_read_as_well(path: Path, name: str) -> None:
    """A journal that an ended process has left, with its WAL, is read as it is, and nothing is left beside it."""
    path = path.with_name(name)
    assert run_in_child(append_and_die, str(path))[0] == 9
    before = content(path)
    assert len(before) == 2
    for _ in ("first", "again"):
        assert [one.body for one in Readable(path)] == [one.body for one in numbered(20)]
        assert content(path) == before
    with opened(path):
        pass
    assert [one.body for one in Readable(path)] == [one.body for one in numbered(20)]
    assert list(content(path)) == [name]


_RECORD = encode([delivery(b"body")])


@pytest.mark.parametrize(
    "data",
    [b"nonsense", _RECORD[:-1], _RECORD.replace(b"default", b"\xff" * 7)],
    ids=["too short", "cut", "not UTF-8"],
)
def test_nonsense_with_a_right_checksum(path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that holds no deliveries, whatever has written it, is counted as lost and keeps nothing else back."""
    with opened(path) as journal:
        append_each(journal, *numbered(2))
    with closing(sqlite3.connect(path)) as connection, connection, monkeypatch.context() as patch:
        patch.setattr(record, "encode", lambda _: data)
        table.insert(connection, table.load(connection, None), numbered(1))
    with opened(path) as journal:
        append_each(journal, *numbered(2))
    source = Readable(path)
    assert [one.body for one in source] == 2 * [one.body for one in numbered(2)]
    assert source.lost == 1


def test_reading_that_is_broken_off(path: Path) -> None:
    """Reading that ends in the middle leaves nothing open, and nothing behind."""
    with opened(path) as journal:
        append_each(journal, *numbered(20))
    reading = iter(Readable(path))
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert list(content(path)) == [path.name]


def test_table_of_which_nothing_can_be_read(path: Path) -> None:
    """A journal whose table is damaged at its root does not count as read."""
    with opened(path) as journal:
        append(journal, *numbered(300, 250))
    with path.open("r+b") as file_:
        file_.seek(PAGE)
        file_.write(b"\xff" * PAGE)
    with pytest.raises(UnreadableError, match="malformed"):
        list(Readable(path))


@pytest.mark.parametrize("text", [b"", b"No database. " * 1000])
def test_file_that_is_no_journal(path: Path, text: bytes) -> None:
    """What is no journal is said to be unreadable, and stays as it is."""
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(UnreadableError):
        list(Readable(path))
    assert content(path) == {path.name: text}


def append_many_and_die(path: str, count: str) -> None:
    """Leave a WAL that was begun anew, with older frames behind its own."""
    with opened(Path(path)) as journal:
        append_each(journal, *numbered(int(count), 2000))
        os._exit(9)


@pytest.mark.parametrize("count", [600, 800, 1000])
def test_wal_that_was_begun_anew_is_sound(path: Path, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """What a crash leaves of a WAL that is used a second time, with old frames at its end, is not taken for damaged."""
    assert run_in_child(append_many_and_die, str(path), str(count))[0] == 9
    wal = Path(f"{path}-wal").read_bytes()
    salts = {wal[at + 8 : at + 16] for at in range(32, len(wal), PAGE + 24)}
    assert len(salts) > 1
    with opened(path) as journal:
        assert len(drain(journal)) == count
    assert caplog.records == []
