"""Recovery of damaged journals: what can be read of them is brought into the database, a batch at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

from receiver.database.errors import problem_of
from receiver.delivery import Delivery
from receiver.journal.damaged import journal_of, mark_recovered
from receiver.journal.recovery import Readable, UnreadableError
from receiver.projector.messages import ClosedError
from receiver.projector.outcome import Outcome
from receiver.projector.suspects import Suspects

logger = logging.getLogger(__name__)

_BATCH = 100  # deliveries, which may be of a MiB each
_PAUSE = 30.0  # seconds after a failure


def recover(path: Path, source: Readable, suspects: Suspects) -> Iterator[tuple[int, Outcome]]:
    """Bring a journal file into the database; yields how many deliveries were read and what became of them, by batch.

    It can be broken off and done again: what is stored already stays once. Raises `UnreadableError`.
    """
    for batch in _batches(source, suspects):
        yield len(batch), suspects.store(batch, journal_of(path))


def _batches(source: Readable, suspects: Suspects) -> Iterator[list[Delivery]]:
    batch: list[Delivery] = []
    problem: UnreadableError | None = None
    try:
        for one in source:
            if suspects.is_aside(one):
                continue
            if batch and (len(batch) == _BATCH or suspects.is_alone(batch[-1]) or suspects.is_alone(one)):
                yield batch
                batch = []
            batch.append(one)
    except UnreadableError as error:  # which may come after deliveries
        problem = error
    if batch:
        yield batch
    if problem is not None:
        raise problem


def recover_all(damaged: SimpleQueue[Path], suspects: Suspects, tell: Callable[[Outcome], None]) -> Iterator[bool]:
    """Recover the files that come in a queue, and mark them as recovered; yields after each batch, and while idle.

    Each batch's outcome is told.
    What is yielded is whether to go on at once. Nothing is raised but by `tell`: what fails is tried again later.
    """
    not_before = 0.0
    while True:
        if damaged.empty() or time.monotonic() < not_before:
            yield False
            continue
        path = damaged.get()
        source = Readable(path)
        counts = {"read": 0, "stored": 0}
        try:
            for read, outcome in recover(path, source, suspects):
                tell(outcome)
                counts = {"read": counts["read"] + read, "stored": counts["stored"] + outcome.new}
                yield True
            details = counts | {"rows_lost": source.lost, "moved_to": str(mark_recovered(path))}
            logger.warning("damaged journal recovered", extra=details)
        except (UnreadableError, OSError) as error:  # until the next start
            details = counts | {"journal": str(path), "problem": str(error)}
            logger.error("damaged journal cannot be read", extra=details)  # noqa: TRY400 (the problem in one line)
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the file is still there)
            details = {"journal": str(path), "problem": problem_of(error)}
            logger.warning("damaged journal not recovered yet", extra=details)
            damaged.put(path)
            not_before = time.monotonic() + _PAUSE
