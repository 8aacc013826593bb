"""Recovery of damaged journals: what can be read of them is brought into the database, a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from receiver.database.errors import problem_of
from receiver.journal.damaged import mark_recovered
from receiver.journal.recovery import UnreadableError, read_file
from receiver.projector.store import Store

logger = logging.getLogger(__name__)

_BATCH = 100  # deliveries, which may be of a MiB each
_PAUSE = 30.0  # seconds after a failure


def recover(path: Path, store: Store) -> Iterator[tuple[int, int]]:
    """Bring a journal file into the database; yields how many deliveries were read and stored, batch by batch.

    It can be broken off and done again: what is stored already stays once. Raises `UnreadableError`.
    """
    deliveries = read_file(path)
    while batch := list(islice(deliveries, _BATCH)):
        yield len(batch), store.store(batch)


def recover_all(damaged: SimpleQueue[Path], store: Store) -> Iterator[bool]:
    """Recover the files that come in a queue, and mark them as recovered; yields after each batch, and while idle.

    What is yielded is whether to go on at once. Nothing is raised: what fails is tried again later.
    """
    not_before = 0.0
    while True:
        if damaged.empty() or time.monotonic() < not_before:
            yield False
            continue
        path = damaged.get()
        counts = {"read": 0, "stored": 0}
        try:
            for read, stored in recover(path, store):
                counts = {"read": counts["read"] + read, "stored": counts["stored"] + stored}
                yield True
            moved_to = str(mark_recovered(path))
            logger.warning("damaged journal recovered", extra=counts | {"moved_to": moved_to})
        except (UnreadableError, OSError) as error:  # until the next start
            details = {"journal": str(path), "problem": str(error)}
            logger.error("damaged journal cannot be read", extra=details)  # noqa: TRY400 (the problem in one line)
        except Exception as error:  # noqa: BLE001 (whatever it is, the file is still there)
            details = {"journal": str(path), "problem": problem_of(error)}
            logger.warning("damaged journal not recovered yet", extra=details)
            damaged.put(path)
            not_before = time.monotonic() + _PAUSE
