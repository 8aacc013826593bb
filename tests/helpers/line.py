"""The way from a journal to a database, for tests, and deliveries to send along it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import create_engine, select

from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.schema import streams
from receiver.delivery import Delivery
from receiver.journal.journal import Journal
from receiver.metrics import Metrics
from receiver.projector.projector import Projector

NOON = 1726012800.0


class Line(NamedTuple):
    """The way from a journal to a database."""

    journal: Journal
    database: Database
    metrics: Metrics
    projector: Projector

    def put(self, *deliveries: Delivery) -> None:
        async def append() -> None:
            await asyncio.gather(*map(self.journal.append, deliveries))

        asyncio.run(append())

    def drain(self) -> None:
        while self.projector.step():
            pass

    def metric(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(f"metastudio_{name}", labels)
        assert value is not None
        return value

    def outcomes(self, event_type: str = "other") -> dict[str, float]:
        """The outcomes that were counted."""
        labels = {"endpoint": "default", "event_type": event_type}
        counts = {
            one: self.metric("events_total", outcome=one, **labels) for one in ("stored", "duplicate", "quarantined")
        }
        return {outcome: count for outcome, count in counts.items() if count}


@contextmanager
def laid(folder: Path, url: str) -> Iterator[Line]:
    """A line with a journal in `folder`; what was there before is still there."""
    metrics, new = Metrics(), threading.Event()
    journal, database = Journal(folder / "journal.db", 2**30, metrics, new), Database(url)
    try:
        yield Line(journal, database, metrics, Projector(journal, database, metrics, new))
    finally:
        journal.close()
        database.close()


@contextmanager
def started(folder: Path, url: str) -> Iterator[Line]:
    """The same, at work."""
    with laid(folder, url) as line:
        line.projector.start()
        try:
            yield line
        finally:
            line.projector.stop(0)


def body(event_type: str = "RTMP_STREAM_STATE_CHANGE", **message: Any) -> bytes:
    return json.dumps({"event_type": event_type, "message": json.dumps({"job_id": "job"} | message)}).encode()


def delivery(content: bytes, at: float = 0, **other: Any) -> Delivery:
    """A delivery that was signed `at` seconds after noon, and received half a second later."""
    fields: dict[str, Any] = {"endpoint": "default", "received_at": NOON + at + 0.5, "sent_at": NOON + at}
    return Delivery(**fields | {"time_text": b"%x" % int(NOON + at), "body": content} | other)


def rows(url: str, table: Any) -> list[Row]:
    """All of a table, in the order of the times."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            order = (table.c.since if table is streams else table.c.sent_at, table.c.received_at)
            return [dict(row) for row in connection.execute(select(table).order_by(*order)).mappings()]
    finally:
        engine.dispose()


def migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()
