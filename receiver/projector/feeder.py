"""The projector's side in the callbacks' process: starts the worker, feeds it from the journal, counts its reports.

A record counts as stored once the worker says that the database has it. If the worker ends it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from receiver.delivery import NotDurableError
from receiver.journal.journal import Journal
from receiver.journal.record import Record, decode, encode
from receiver.metrics import Metrics
from receiver.projector.batch import Batch, after_death
from receiver.projector.messages import ClosedError, Kind, in_json
from receiver.projector.outcome import Outcome
from receiver.projector.process import WorkerProcess

_T = TypeVar("_T")
logger = logging.getLogger(__name__)

_BATCH = 500  # deliveries
_MOST_ON_THE_WAY = 2  # batches: one that is stored, and one so that the worker need not wait for it
_LINGER = 0.25  # seconds
_SHORTEST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 10.0
_TIDY_EVERY = 5.0  # seconds


class Feeder:
    """Moves what is in `journal` to the database at `database_url`. `wake` is set when there is something to do.

    `stale_after` is the setting `stream_stale_after`.
    """

    def __init__(
        self, journal: Journal, database_url: str, stale_after: int, metrics: Metrics, wake: asyncio.Event
    ) -> None:
        self._journal = journal
        self._database_url = database_url
        self._stale_after = stale_after
        self._metrics = metrics
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._worker: WorkerProcess | None = None
        self._has_worked = False  # the worker
        self._has_begun = False  # to store the first of what is on the way
        self._aside: set[str] = set()  # digests of what has ended workers, and is not to be stored as others are
        self._recovering: list[str] = []  # digests of what the worker stores of a damaged journal
        self._deaths: Counter[str] = Counter()  # of workers while they did, by digest
        self._is_up: bool | None = None  # the database, as far as known
        self._changed_at = time.time()
        self._on_the_way: deque[Batch] = deque()
        self._to_repeat: deque[Batch] = deque()
        self._sent = 0  # id of the last record that was sent
        self._kept_sent: int | None = None  # likewise of those that are offered again, while they are
        self._kept_is_next = False
        self._damaged: list[Path] = []
        self._latest = Outcome()
        self._tidied_at = float("-inf")
        self._stopping = False
        self._finished = asyncio.Event()

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself, unless with an error."""
        self._task = asyncio.create_task(self._run())
        return self._task

    async def stop(self, grace: float) -> None:
        """Drain the journal for at most `grace` seconds, then end. What is left is projected after the next start."""
        self._stopping = True
        self._wake.set()
        if self._task is None:
            return
        if self._is_up is not False:
            finished = asyncio.create_task(self._finished.wait())
            await asyncio.wait((self._task, finished), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def database(self) -> tuple[bool | None, float]:
        """Whether the database is up, None where that is not known, and since when, in POSIX seconds."""
        return self._is_up, self._changed_at

    async def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            details = await self._run_worker()
            self._note_database(is_up=None)
            self._metrics.projector_restarts_total.inc()
            logger.error("projector ended, starting it again", extra=details)
            if self._has_worked:
                pause = _SHORTEST_PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run_worker(self) -> dict[str, Any]:
        """Start a worker and feed it until it ends; returns how it ended."""
        self._has_worked = False
        try:
            worker = await WorkerProcess.start(self._database_url, self._stale_after)
        except OSError as error:
            return {"problem": str(error)}
        self._worker = worker
        code = 0
        try:
            await self._repeat_what_was_on_the_way()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(worker))
                group.create_task(self._listen(worker))
        except* ClosedError:
            pass
        finally:
            code = await worker.end()
        names = {int(one): one.name for one in signal.Signals}
        return {"signal": names.get(-code, str(-code))} if code < 0 else {"exit_code": code}

    async def _repeat_what_was_on_the_way(self) -> None:
        if self._on_the_way and self._has_begun:
            ended_it = self._on_the_way.popleft()
            instead = after_death(ended_it)
            self._on_the_way.extendleft(reversed(instead))
            if not instead:
                (delivery,) = decode(ended_it.payload)
                path = await self._persistently(lambda: self._journal.put_aside(delivery))
                self._note_aside(delivery.endpoint, delivery.digest.hex(), str(path))
                await self._persistently(lambda: self._journal.store(ended_it.last_id))
        self._has_begun = False
        self._deaths.update(self._recovering)
        self._recovering = []
        self._to_repeat.extendleft(reversed(self._on_the_way))
        self._on_the_way.clear()
        # The worker stores one after the other: only the first may be in the database.
        if self._to_repeat and self._to_repeat[0].kind is Kind.BATCH:
            self._to_repeat[0] = self._to_repeat[0]._replace(kind=Kind.BATCH_AGAIN)

    def _note_aside(self, endpoint: str, digest: str, moved_to: str) -> None:
        self._aside.add(digest)
        details = {"endpoint": endpoint, "digest": digest, "moved_to": moved_to}
        logger.error("delivery that ends the projector put aside", extra=details)

    async def _feed(self, worker: WorkerProcess) -> None:
        await worker.send(Kind.SUSPECTS, in_json({"deaths": self._deaths, "aside": [*self._aside]}))
        for path in self._damaged:
            await worker.send(Kind.DAMAGED, in_json(str(path)))
        while True:
            self._wake.clear()
            await self._send_damaged(worker)
            await self._tidy()
            batch = await self._next() if len(self._on_the_way) < _MOST_ON_THE_WAY else None
            if batch is not None:
                self._on_the_way.append(batch)
                await worker.send(batch.kind, batch.payload)
                if batch.last_id == self._journal.last_id and self._kept_sent is None and not self._stopping:
                    # That was all. One larger batch a little later costs the disk less than many small ones.
                    await asyncio.sleep(_LINGER)
                continue
            if self._stopping and not self._on_the_way:
                self._finished.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TIDY_EVERY):
                    await self._wake.wait()

    async def _send_damaged(self, worker: WorkerProcess) -> None:
        while not self._journal.damaged.empty():
            # A worker that is started anew looks at all again, but those that are recovered.
            self._damaged = [path for path in self._damaged if path.exists()] + [self._journal.damaged.get()]
            await worker.send(Kind.DAMAGED, in_json(str(self._damaged[-1])))

    async def _next(self) -> Batch | None:
        """A batch that waits, and after it one that was kept, so that neither waits for the other."""
        takes = [self._next_waiting, self._next_kept]
        for take in reversed(takes) if self._kept_is_next else takes:
            batch = await take()
            if batch is not None:
                self._kept_is_next = batch.kind is not Kind.BATCH_KEPT
                return batch
        return None

    async def _next_waiting(self) -> Batch | None:
        if self._to_repeat:
            return self._to_repeat.popleft()
        records = await self._persistently(lambda: self._journal.read(self._sent, _BATCH))
        if not records:
            return None
        self._sent = records[-1].id
        return _batch(Kind.BATCH, records)

    async def _next_kept(self) -> Batch | None:
        if self._kept_sent is None or self._stopping:
            return None
        after = self._kept_sent
        records = await self._persistently(lambda: self._journal.read_kept(after, _BATCH))
        self._kept_sent = records[-1].id if records else None
        if not records:
            return None
        batch = _batch(Kind.BATCH_KEPT, records)
        if self._aside:
            others = (one for one in decode(batch.payload) if one.digest.hex() not in self._aside)
            batch = batch._replace(payload=encode(others))
        return batch

    async def _tidy(self) -> None:
        """Remove what was kept for long enough; not while the database, or a part of what it had, may be lost."""
        if self._is_up and self._kept_sent is None and time.monotonic() > self._tidied_at + _TIDY_EVERY:
            self._tidied_at = time.monotonic()
            await self._persistently(self._journal.remove_expired)

    async def _listen(self, worker: WorkerProcess) -> None:
        while True:
            await self._take(await worker.receive())
            self._wake.set()

    async def _take(self, report: dict[str, Any]) -> None:
        """Count what the worker reports, and note what it has stored."""
        if "begins" in report:
            self._has_begun = True
        if "recovers" in report:
            self._recovering = report["recovers"]
        if "aside" in report:
            self._note_aside(**report["aside"])
        if "outcome" in report:
            outcome = Outcome.from_json(report["outcome"])
            if report.get("batch"):
                self._has_worked = True
                # Counted last: should this be cut short by the worker's end, the batch is sent and counted again.
                await self._note_stored(self._on_the_way[0], outcome)
                self._on_the_way.popleft()
                self._has_begun = False
            self._count(outcome)
        self._note_streams(report)
        if "error" in report:
            self._metrics.projector_errors_total.labels(report["error"]).inc()
        if "up" in report:
            self._note_database(is_up=report["up"])
            if self._stopping and not self._is_up:
                self._finished.set()
        if report.get("is_new"):
            self._kept_sent = 0
            await self._persistently(self._journal.restart_keeping)

    def _note_database(self, *, is_up: bool | None) -> None:
        if is_up is not self._is_up:
            self._changed_at = time.time()
        self._is_up = is_up
        self._metrics.database_up.set(bool(is_up))

    def _note_streams(self, report: dict[str, Any]) -> None:
        for state, count in report.get("streams", {}).items():
            self._metrics.streams.labels(state).set(count)
        if "streams_stale" in report:
            self._metrics.streams_stale.set(report["streams_stale"])
        for finding, count in report.get("platform_jobs", {}).items():
            self._metrics.platform_jobs.labels(finding).set(count)
        if report.get("platform_checked") is not None:
            self._metrics.platform_checked_timestamp_seconds.set(report["platform_checked"])

    def _count(self, outcome: Outcome) -> None:
        outcome.count(self._metrics)
        for event_type, at in outcome.latest.items():
            self._latest.note_latest(event_type, at)
            self._metrics.last_event_timestamp_seconds.labels(event_type).set(self._latest.latest[event_type])

    async def _note_stored(self, batch: Batch, outcome: Outcome) -> None:
        if batch.kind is Kind.BATCH_KEPT:
            self._metrics.events_restored_total.inc(outcome.new)
        else:
            await self._persistently(lambda: self._journal.store(batch.last_id))
        if batch.kind is Kind.BATCH_UNPARSED:
            for delivery in decode(batch.payload):
                self._note_aside(delivery.endpoint, delivery.digest.hex(), "quarantine")

    async def _persistently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do what needs the journal's disk until that works."""
        pause = _SHORTEST_PAUSE
        while True:
            try:
                return await work()
            except NotDurableError:  # which the journal itself has logged
                self._metrics.projector_errors_total.labels("journal").inc()
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 (no secret)
                pause = min(2 * pause, _LONGEST_PAUSE)


def _batch(kind: Kind, records: list[Record]) -> Batch:
    return Batch(kind, records[-1].id, b"".join(record.data for record in records))
