"""What the status page shows of this process, and what it asks for it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Gauge

from receiver.metrics import Metrics
from receiver.rejections import Rejection
from receiver.settings.settings import Settings
from receiver.web.status.last_hour import LastHour


@dataclass(frozen=True, slots=True)
class Sources:
    """What the page asks of the other parts.

    `check_journal` raises `NotDurableError` where a delivery would not be taken. `database` says whether the database
    is up, None where that is not known yet, and since when, in POSIX seconds. `rejections` are the latest requests that
    were rejected, and `explain` says why one was, without secrets. `now` gives POSIX seconds.
    """

    settings: Settings
    metrics: Metrics
    last_hour: LastHour
    check_journal: Callable[[], Awaitable[None]]
    database: Callable[[], tuple[bool | None, float]]
    rejections: Callable[[], Sequence[Rejection]]
    explain: Callable[[Rejection], Sequence[str]]
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Journal:
    """Whether it takes callbacks (None: not known in time), and if not why; its size, and what waits in it."""

    takes: bool | None
    problem: str
    events: int
    bytes: int
    max_bytes: int
    free_bytes: int
    oldest: datetime | None

    @property
    def fill(self) -> float:
        """The part of its room that is taken, in percent."""
        return min(100 * self.bytes / self.max_bytes, 100.0)


@dataclass(frozen=True, slots=True)
class Database:
    """Whether it is up, None where that is not known, since when, and what went wrong when the page read it."""

    up: bool | None
    since: datetime
    problem: str


def journal(metrics: Metrics, problem: str | None, *, takes: bool | None) -> Journal:
    """The journal, as the metrics have it."""
    oldest = _value(metrics.journal_oldest_timestamp_seconds)
    return Journal(
        takes,
        problem or "",
        int(_value(metrics.journal_events)),
        int(_value(metrics.journal_bytes)),
        int(_value(metrics.journal_max_bytes)),
        int(_value(metrics.journal_disk_free_bytes)),
        moment(oldest),
    )


def certificate_end(metrics: Metrics) -> datetime | None:
    """When the certificate expires; None without one."""
    return moment(_value(metrics.certificate_expiry_timestamp_seconds))


def moment(seconds: float) -> datetime | None:
    """POSIX seconds as a time; None for what is no time."""
    return None if math.isnan(seconds) else datetime.fromtimestamp(seconds, UTC)


def _value(gauge: Gauge) -> float:
    (family,) = gauge.collect()
    return family.samples[0].value
