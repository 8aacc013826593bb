"""Damaged journals on disk: moved aside as `NAME.damaged-TIME`, and renamed to `NAME.recovered-TIME` once recovered.

Each keeps its WAL beside it (`…-wal`), which may have the only copy of deliveries that were acknowledged.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

_DAMAGED, _RECOVERED = ".damaged-", ".recovered-"


def move_aside(journal: Path) -> Path:
    """Rename a damaged journal and its WAL; returns the new name.

    The file goes first. A crash between the two renames leaves a WAL without a file, which `move_wal` takes care of
    before a new journal is made. The other way round it would leave a file without its WAL, which may look whole.
    """
    target = _new_name(journal)
    journal.rename(target)
    sync_directory(journal.parent)
    move_wal(journal, target)
    return target


def move_wal(journal: Path, damaged: Path | None = None) -> None:
    """Move the WAL that is left of a `journal`: SQLite would bring it into a new one. It belongs to the latest file."""
    wal = wal_of(journal)
    if wal.exists():
        damaged = damaged or [_new_name(journal), *unrecovered(journal)][-1]
        # Where that one has a WAL already, it was not a crash that left this one, and it is kept on its own.
        wal.rename(wal_of(_new_name(journal) if wal_of(damaged).exists() else damaged))
        sync_directory(journal.parent)


def unrecovered(journal: Path) -> list[Path]:
    """The damaged files of `journal` that are not marked as recovered, the oldest first."""
    found = journal.parent.iterdir() if journal.parent.is_dir() else ()
    names = (one.name for one in found if not one.name.endswith(("-wal", "-shm")))
    return sorted(journal.with_name(name) for name in names if name.startswith(journal.name + _DAMAGED))


def mark_recovered(damaged: Path) -> Path:
    """Rename a damaged file all of which is in the database; returns the new name."""
    name, _, time = damaged.name.rpartition(_DAMAGED)
    target = damaged.with_name(f"{name}{_RECOVERED}{time}")
    # The WAL first: a crash in between leaves a damaged file that is recovered once more, and finished then.
    if wal_of(damaged).exists():
        wal_of(damaged).rename(wal_of(target))
    Path(f"{damaged}-shm").unlink(missing_ok=True)  # left by a reader that was killed
    return damaged.rename(target)


def journal_of(damaged: Path) -> Path:
    """The journal that a damaged file was; itself where it has no such name."""
    return damaged.with_name(damaged.name.rpartition(_DAMAGED)[0] or damaged.name)


def wal_of(path: Path) -> Path:
    """Where SQLite keeps the WAL of a file."""
    return Path(f"{path}-wal")


def sync_directory(path: Path) -> None:
    """Make the names in a directory outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_name(journal: Path) -> Path:
    return Path(f"{journal}{_DAMAGED}{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
