"""A batch on its way to the worker, and what becomes of one whose storing ends the worker again and again."""

from __future__ import annotations

from typing import NamedTuple

from receiver.journal.record import decode, encode
from receiver.projector.messages import Kind

MOST_DEATHS = 3  # of workers, before a batch is taken to be the cause


class Batch(NamedTuple):
    """Deliveries as bytes; `last_id` is up to where the journal is stored with them, or 0 where more belongs to it.

    `deaths` counts the workers that ended while they stored it.
    """

    kind: Kind
    last_id: int
    payload: bytes
    deaths: int = 0


def after_death(batch: Batch) -> list[Batch]:
    """What to try instead of a batch whose storing has just ended a worker: at last, nothing of it."""
    deaths = batch.deaths + 1
    if deaths < MOST_DEATHS:
        return [batch._replace(deaths=deaths)]
    deliveries = decode(batch.payload)
    if len(deliveries) > 1:
        # One of them may be the cause. Another death, and a half is halved again.
        middle = len(deliveries) // 2
        halves = (0, deliveries[:middle]), (batch.last_id, deliveries[middle:])
        return [Batch(batch.kind, last_id, encode(half), deaths - 1) for last_id, half in halves]
    if batch.kind is not Kind.BATCH_UNPARSED:
        return [batch._replace(kind=Kind.BATCH_UNPARSED, deaths=0)]
    return []
