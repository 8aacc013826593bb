"""A record of the journal: the deliveries of one commit as bytes, and a row of its table with a checksum over it."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from receiver.delivery import Delivery

_ABOUT = struct.Struct("<qqd")  # id, number of deliveries, time of the oldest
_HEAD = struct.Struct("<ddIIII")  # received_at, sent_at, and the lengths of endpoint, reason, time_text and body


class DamagedError(sqlite3.DatabaseError):
    """What was read was not written like this. SQLite has no checksums that would tell."""


class Record(NamedTuple):
    """A row: how many deliveries `data` holds, when the oldest was received, and a CRC-32 over all the others."""

    id: int
    deliveries: int
    oldest: float
    crc: int
    data: bytes


def to_record(record_id: int, deliveries: Sequence[Delivery]) -> Record:
    """The record that is written for deliveries."""
    count, oldest, data = len(deliveries), min(one.received_at for one in deliveries), encode(deliveries)
    return Record(record_id, count, oldest, _checksum(record_id, count, oldest, data), data)


def from_row(row: Sequence[Any]) -> Record:
    """The record in a row as it was read; raises `DamagedError` unless it was written like this."""
    record = Record(*row)
    try:
        is_sound = record.crc == _checksum(*record[:3], record.data)
    except (struct.error, TypeError):
        is_sound = False
    if not is_sound:
        raise DamagedError("a row was not written like this")
    return record


def encode(deliveries: Iterable[Delivery]) -> bytes:
    """Deliveries as bytes, one after the other: those of several records may be put together."""
    parts: list[bytes] = []
    for one in deliveries:
        endpoint, reason = one.endpoint.encode(), (one.quarantine_reason or "").encode()
        lengths = len(endpoint), len(reason), len(one.time_text), len(one.body)
        parts += (_HEAD.pack(one.received_at, one.sent_at, *lengths), endpoint, reason, one.time_text, one.body)
    return b"".join(parts)


def decode(data: bytes) -> list[Delivery]:
    """The deliveries that `encode` made bytes of; raises `DamagedError` where it did not."""
    found: list[Delivery] = []
    at = 0
    try:
        while at < len(data):
            received_at, sent_at, *lengths = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            texts: list[bytes] = []
            for length in lengths:
                texts.append(data[at : at + length])
                at += length
            endpoint, reason, time_text, body = texts
            found.append(Delivery(endpoint.decode(), received_at, sent_at, time_text, body, reason.decode() or None))
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedError("a record holds no deliveries") from error
    if at > len(data):
        raise DamagedError("a record ends within a delivery")
    return found


def _checksum(record_id: int, deliveries: int, oldest: float, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_ABOUT.pack(record_id, deliveries, oldest)))
