"""Damage of the journal's file, also where SQLite, which has no checksums, does not see it."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.delivery import NotDurableError
from receiver.journal.journal import Journal
from tests.helpers.journal import append, delivery, numbered, opened, run_in_child

PAGE, SECTOR = 4096, 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var/journal.db"


def drain(journal: Journal) -> list[bytes]:
    """Read and remove until nothing is left, as the projector does; returns the bodies, each once."""
    found: list[bytes] = []
    for _ in range(40):
        try:
            batch = journal.read(50)
            found += [one.body for _, one in batch]
            if not batch:
                return list(dict.fromkeys(found))
            journal.remove(batch[-1][0])
        except NotDurableError:
            continue
    return pytest.fail("the journal is never empty")


def spoil(path: Path, statement: str) -> list[bytes]:
    """Twenty deliveries, of which a row is changed by `statement`; returns the bodies as they were."""
    deliveries = numbered(20)
    with opened(path) as journal:
        append(journal, *deliveries)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    return [one.body for one in deliveries]


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere(path: Path, seed: int) -> None:
    """Wherever a sector or byte is damaged, what is not on its page or beside it goes its way, and what comes then."""
    with opened(path) as journal:
        append(journal, *numbered(300, 250))
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


@pytest.mark.parametrize(
    "change",
    ["received_at = 1e300", "sent_at = -1", "sent_at = 'x'", "endpoint = CAST(X'66ff' AS TEXT)", "body = 'text'"],
)
def test_row_that_was_never_written(path: Path, change: str, caplog: pytest.LogCaptureFixture) -> None:
    """A row that no delivery was written as is left in the file that is moved aside; the others go their way."""
    before = spoil(path, f"UPDATE inbox SET {change} WHERE id = 5")
    with opened(path) as journal:
        assert drain(journal) == [body for number, body in enumerate(before, 1) if number != 5]
    (moved,) = [record for record in caplog.records if record.message == "journal damaged, moved aside"]
    with closing(sqlite3.connect(vars(moved)["moved_to"])) as connection:
        assert connection.execute("SELECT count(*) FROM inbox WHERE id = 5").fetchone() == (1,)


@pytest.mark.parametrize("row", [1, 25, 50])
@pytest.mark.parametrize("wrong", [3, 127])
def test_row_with_a_wrong_id(path: Path, row: int, wrong: int) -> None:
    """Nothing is removed that was not read, wherever in a batch an id is damaged."""
    before = [one.body for one in numbered(300, 250)]
    with opened(path) as journal:
        append(journal, *numbered(300, 250))
    pages = path.read_bytes()
    at = place_of_id(pages, row)
    path.write_bytes(pages[:at] + bytes([wrong]) + pages[at + 1 :])
    with opened(path) as journal:
        assert set(drain(journal)) == set(before)


def place_of_id(pages: bytes, row: int) -> int:
    """Where the id of a row, below 128, is in a file of SQLite's format, in which all rows have 128 to 16,383 bytes."""
    for page in range(PAGE, len(pages), PAGE):
        cells = int.from_bytes(pages[page + 3 : page + 5], "big") if pages[page] == 0x0D else 0  # a table's leaf
        for pointer in range(page + 8, page + 8 + 2 * cells, 2):
            at = page + int.from_bytes(pages[pointer : pointer + 2], "big") + 2  # behind the size
            if pages[at] == row:
                return at
    return pytest.fail(f"there is no row {row}")


def die_at_rename(path: str, name: str) -> None:
    """Read a damaged journal, and die before the file of this name is renamed."""
    rename = Path.rename

    def rename_or_die(self: Path, target: Path) -> Path:
        if self.name == name:
            os._exit(9)
        return rename(self, target)

    Path.rename = rename_or_die  # type: ignore[method-assign,assignment]
    with opened(Path(path)) as journal:
        drain(journal)


@pytest.mark.parametrize("name", ["journal.db", "journal.db.rescued"])
def test_death_while_it_is_moved_aside(path: Path, name: str) -> None:
    """A process that ends while a damaged journal is moved aside costs nothing of what can be read of it."""
    before = spoil(path, "UPDATE inbox SET received_at = -1 WHERE id = 1")
    assert run_in_child(die_at_rename, str(path), name)[0] == 9
    with opened(path) as journal:
        assert drain(journal) == before[1:]
        assert append(journal, delivery(b"new")) == [""]
