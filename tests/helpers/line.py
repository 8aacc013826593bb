"""The way from a journal to a database, for tests, and deliveries to send along it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import create_engine, select

from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.schema import streams
from receiver.delivery import Delivery
from receiver.journal.journal import Journal
from receiver.journal.record import decode
from receiver.metrics import Metrics
from receiver.projector.feeder import Feeder
from tests.helpers.quick import service
from tests.helpers.receiver import wait_until

_T = TypeVar("_T")
Clock = Callable[[], float]
NOON = 1726012800.0
STALE_AFTER = 2**40  # seconds: no job is stale, though they are all years old


class Line:
    """The way from a journal to a database: the callbacks' side in a thread of its own, and a real worker."""

    def __init__(
        self,
        folder: Path,
        url: str,
        keep: float = 0,
        clock: Clock = time.monotonic,
        *,
        stale_after: int = STALE_AFTER,
    ) -> None:
        service("the projector's worker")  # which the feeder would try to start again and again
        self.url = url
        self.metrics = Metrics()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        wake = asyncio.Event()
        self.journal = Journal(folder / "journal.db", 2**30, self.metrics, wake, keep, clock)
        self.feeder = Feeder(self.journal, url, stale_after, self.metrics, wake)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something on the callbacks' side."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def start(self) -> None:
        """Start to project."""

        async def start() -> None:
            self.feeder.start()

        self.run(start())

    def stop(self, grace: float = 60) -> None:
        """End to project; what waits then is projected within the grace."""
        asyncio.run_coroutine_threadsafe(self.feeder.stop(grace), self.loop).result(grace + 60)

    def close(self) -> None:
        """End, whatever waits."""
        self.stop(0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.journal.close()
        self.loop.close()

    @property
    def worker(self) -> int:
        """The worker's process id."""
        worker = wait_until(lambda: self.feeder._worker, "a worker")  # noqa: SLF001
        pid: int = worker.pid
        return pid

    def put(self, *deliveries: Delivery) -> None:
        """All in one turn of the loop, and so in one row."""

        async def append() -> None:
            await asyncio.gather(*map(self.journal.append, deliveries))

        self.run(append())

    def put_each(self, *deliveries: Delivery) -> None:
        """Each in a row of its own."""
        for one in deliveries:
            self.put(one)

    def read(self) -> list[Delivery]:
        """What waits."""
        return [one for record in self.run(self.journal.read(0, 10_000)) for one in decode(record.data)]

    def drain(self) -> None:
        """Wait until nothing waits, and all of it is counted."""

        async def is_drained() -> bool:
            # In the loop, where nothing is half-way between the journal's count and that of the outcomes.
            return self.metric("journal_events") == 0 and not self.feeder._on_the_way  # noqa: SLF001

        wait_until(lambda: self.run(is_drained()), "an empty journal", 180)

    def settle(self) -> None:
        """Wait until nothing waits, and all that is kept was offered to a database that is up: nothing is under way."""

        async def is_settled() -> bool:
            feeder = self.feeder
            return bool(feeder._is_up) and feeder._kept_sent is None and not feeder._on_the_way  # noqa: SLF001

        self.drain()
        wait_until(lambda: self.run(is_settled()), "an end")

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
def laid(
    folder: Path, url: str, keep: float = 0, clock: Clock = time.monotonic, *, stale_after: int = STALE_AFTER
) -> Iterator[Line]:
    """A line with a journal in `folder`; what was there before is still there."""
    line = Line(folder, url, keep, clock, stale_after=stale_after)
    try:
        yield line
    finally:
        line.close()


@contextmanager
def started(
    folder: Path, url: str, keep: float = 0, clock: Clock = time.monotonic, *, stale_after: int = STALE_AFTER
) -> Iterator[Line]:
    """The same, at work."""
    with laid(folder, url, keep, clock, stale_after=stale_after) as line:
        line.start()
        yield line


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    own, its = socket.socketpair()
    with own, its:
        yield own, its


class Logs:
    """What this process and the worker's, which writes it to the same standard error, have logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        self._caplog = caplog
        self._capfd = capfd
        self._text = ""

    @property
    def worker(self) -> list[dict[str, Any]]:
        """The worker's lines."""
        self._text += self._capfd.readouterr().err
        return [json.loads(line) for line in self._text.splitlines()]

    @property
    def own(self) -> list[str]:
        """This process's messages."""
        return [record.message for record in self._caplog.records]

    @property
    def outage(self) -> list[str]:
        """The worker's messages, but for further problems of one outage."""
        return [line["event"] for line in self.worker if line["event"] != "database still down"]


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
