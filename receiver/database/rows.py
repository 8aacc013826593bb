"""Deliveries as rows of the tables `events` and `quarantine`."""

from __future__ import annotations

from datetime import UTC, datetime

from receiver.database.insert import Row
from receiver.delivery import Delivery
from receiver.protocol.events import Event, EventError, parse


def to_row(delivery: Delivery) -> Row:
    """The delivery as a row of `events`, or (with a ``reason``) of `quarantine`."""
    if delivery.quarantine_reason is not None:
        return quarantine_row(delivery, delivery.quarantine_reason)
    try:
        event = parse(delivery.body)
    except EventError as error:
        return quarantine_row(delivery, error.reason)
    return _delivered(delivery) | event_columns(event, delivery.body)


def event_columns(event: Event, body: bytes) -> Row:
    """The columns of `events` that come from the body alone."""
    return {**event._asdict(), "body": body.decode()}


def quarantine_row(delivery: Delivery, reason: str) -> Row:
    """The delivery as a row of `quarantine`, with its exact bytes."""
    return _delivered(delivery) | {"reason": str(reason), "body": delivery.body}


def delivery_columns(row: Row) -> Row:
    """The columns that do not come from the body: a row has them in either table."""
    return {name: row[name] for name in ("endpoint", "sent_at", "received_at", "digest")}


def _delivered(delivery: Delivery) -> Row:
    return {
        "endpoint": delivery.endpoint,
        "sent_at": datetime.fromtimestamp(delivery.sent_at, UTC),
        "received_at": datetime.fromtimestamp(delivery.received_at, UTC),
        "digest": delivery.digest,
    }
