"""A delivery: an authentic callback as received, on its way from the public listener to the database."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class NotDurableError(Exception):
    """The delivery could not be put on disk. The message says why, for logs."""


class Delivery(NamedTuple):
    """An authentic callback. Times are POSIX seconds; `time_text` is hwTime as received, empty without a signature.

    `quarantine_reason` is set for a delivery that belongs in quarantine.
    """

    endpoint: str
    received_at: float
    sent_at: float
    time_text: bytes
    body: bytes
    quarantine_reason: str | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 over endpoint, hwTime text and body: equal for an exact repeat, and only then."""
        parts = (self.endpoint.encode(), self.time_text, self.body)
        return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()
