"""Whether a promise was kept: what was acknowledged against what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import create_engine, text

from tests.helpers.load import Load, Receiver
from tests.helpers.receiver import wait_until


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault that was made `runs` times. `lost`, `duplicates` and `altered` are ids of events."""

    fault: str
    runs: int
    acknowledged: int
    stored: int
    lost: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        """What came of both."""
        return Outcome(
            self.fault,
            self.runs + other.runs,
            self.acknowledged + other.acknowledged,
            self.stored + other.stored,
            self.lost + other.lost,
            self.duplicates + other.duplicates,
            self.altered + other.altered,
        )

    def check(self) -> None:
        """Fail unless each acknowledged event is stored once, as it was sent."""
        assert self.acknowledged > 0, f"{self.fault}: nothing was acknowledged, so nothing was tested"
        for what in ("lost", "duplicates", "altered"):
            found = getattr(self, what)
            assert not found, f"{self.fault}: {len(found)} of {self.acknowledged} events {what}: {found[:10]}"


@dataclass(frozen=True, slots=True)
class Trial:
    """How often to cause a fault, and where to report what came of it and figures about it."""

    times: int
    record: Callable[[Outcome], None]
    remark: Callable[[str], None]


def compare(fault: str, load: Load, *, runs: int = 1) -> Outcome:
    """Wait until the receivers' journals are empty, then compare what `load` did with what their database holds.

    Rows of other loads are left alone.
    """
    assert not load.wrong, load.wrong[:10]
    for receiver in load.receivers:
        drained(receiver)
    (url,) = {receiver.database_url for receiver in load.receivers}
    rows: Counter[str] = Counter()
    altered = []
    for identity, body in stored_bodies(url, load.run):
        rows[identity] += 1
        if load.sent.get(identity) != body:
            altered.append(identity)
    return Outcome(
        fault,
        runs,
        acknowledged=len(load.acknowledged),
        stored=rows.total(),
        lost=tuple(sorted(load.acknowledged.keys() - rows.keys())),
        duplicates=tuple(identity for identity, count in rows.items() if count > 1),
        altered=tuple(altered),
    )


def drained(receiver: Receiver) -> None:
    """Wait until the receiver has put all that it accepted into its database."""
    wait_until(lambda: receiver.metric("journal_events") == 0, "an empty journal")


def stored_bodies(url: str, run: str) -> list[tuple[str, bytes]]:
    """All events of a run: id and exact body."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            query = text("SELECT room_id, body FROM events WHERE room_id LIKE :run || '-%'")
            found = connection.execute(query, {"run": run})
            return [(identity, body.encode()) for identity, body in found]
    finally:
        engine.dispose()
