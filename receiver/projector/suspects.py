"""Deliveries of damaged journals, as the worker stores them: one that ends workers again and again is put aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from receiver.delivery import Delivery
from receiver.journal.aside import put_aside
from receiver.projector.batch import MOST_DEATHS
from receiver.projector.messages import Kind
from receiver.projector.outcome import Outcome
from receiver.projector.store import Store


class Suspects:
    """Stores what is read of damaged journals in `store`.

    `report` tells the feeder which deliveries are being stored. It counts how many workers have ended with each, and
    tells that to the next one. After three a delivery is stored alone, after six unparsed, and after nine not at all.
    """

    def __init__(self, store: Store, report: Callable[..., None] = lambda **_: None) -> None:
        self._store = store
        self._report = report
        self._deaths: Mapping[str, int] = {}  # by the digests of deliveries
        self._aside: frozenset[str] = frozenset()  # digests of what is in its place already

    def note(self, deaths: Mapping[str, int], aside: Iterable[str]) -> None:
        """Take note of what the feeder knows."""
        self._deaths, self._aside = deaths, frozenset(aside)

    def is_aside(self, delivery: Delivery) -> bool:
        """Whether the delivery is not to be stored, because it was put aside."""
        return bool(self._aside) and delivery.digest.hex() in self._aside

    def is_alone(self, delivery: Delivery) -> bool:
        """Whether the delivery may end the worker, and is to be stored by itself."""
        return self._deaths_of(delivery) >= MOST_DEATHS

    def store(self, deliveries: Sequence[Delivery], journal: Path) -> Outcome:
        """Store what was read of a damaged `journal`, or put it aside."""
        deaths = self._deaths_of(deliveries[0]) if len(deliveries) == 1 else 0
        outcome, where = Outcome(), ""
        self._report(recovers=[one.digest.hex() for one in deliveries])
        try:
            if deaths < 2 * MOST_DEATHS:
                # Some may have been stored before the damage: as with what was kept, nobody knows.
                outcome = self._store.store(deliveries, Kind.BATCH_KEPT)
            elif deaths < 3 * MOST_DEATHS:
                outcome, where = self._store.store(deliveries, Kind.BATCH_UNPARSED), "quarantine"
            else:
                where = str(put_aside(journal, deliveries[0]))
        finally:
            self._report(recovers=[])
        if where:
            (one,) = deliveries
            self._report(aside={"endpoint": one.endpoint, "digest": one.digest.hex(), "moved_to": where})
        return outcome

    def _deaths_of(self, delivery: Delivery) -> int:
        return self._deaths.get(delivery.digest.hex(), 0) if self._deaths else 0
