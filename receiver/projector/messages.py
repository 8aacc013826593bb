"""What the feeder and the worker say to each other over a socket: frames with a length and a kind."""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any

HEAD = struct.Struct("!IB")  # length of what follows, and its kind


class Kind(IntEnum):
    """What a frame holds. All but the batches, which are deliveries as the journal has them, are JSON."""

    SETTINGS = 1
    DAMAGED = 2  # the path of a damaged journal to recover
    BATCH = 3
    BATCH_AGAIN = 4  # of which nobody knows whether a worker that has ended had stored it
    BATCH_KEPT = 5  # which was stored, and may be lost
    REPORT = 6  # from the worker
    BATCH_UNPARSED = 7  # which goes to quarantine as it is: to store it otherwise has ended workers
    SUSPECTS = 8  # how many workers have ended with which deliveries of damaged journals, and what was put aside


BATCHES = (Kind.BATCH, Kind.BATCH_AGAIN, Kind.BATCH_KEPT, Kind.BATCH_UNPARSED)


class ClosedError(Exception):
    """The other side has ended."""


def frame(kind: Kind, payload: bytes) -> bytes:
    """The bytes to send."""
    return HEAD.pack(len(payload), kind) + payload


def in_json(value: Any) -> bytes:  # noqa: ANN401 (whatever JSON has)
    """The payload of all kinds but batches."""
    return json.dumps(value).encode()
