"""How many callbacks were accepted and rejected in the last hour, counted from what the metrics were each minute."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from receiver.metrics import Metrics

_MINUTES = 60
_MINUTE = 60.0  # seconds


class Figures(NamedTuple):
    """Since when (POSIX seconds), how many were accepted, and how many rejected by endpoint and reason."""

    since: float
    accepted: int
    rejected: list[tuple[str, str, int]]


class LastHour:
    """Looks at the counters once a minute, so that callbacks do not count anything twice."""

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = now
        self._minutes = deque([(now(), self._counts())], maxlen=_MINUTES + 1)

    async def run(self) -> None:
        """Note the counters each minute; never ends by itself."""
        while True:
            await asyncio.sleep(_MINUTE)
            self.note()

    def note(self) -> None:
        """Note what the counters are now."""
        self._minutes.append((self._now(), self._counts()))

    def figures(self) -> Figures:
        """Of the last hour, or since the start if that is later."""
        since, before = self._minutes[0]
        counts = self._counts() - before
        rejected = [(*key, count) for key, count in counts.most_common() if key[1]]
        return Figures(since, sum(count for key, count in counts.items() if not key[1]), rejected)

    def _counts(self) -> Tally[tuple[str, str]]:
        """By endpoint and reason, which is empty for what was accepted."""
        counts: Tally[tuple[str, str]] = Tally()
        for metric in (self._metrics.callbacks_total, self._metrics.callbacks_rejected_total):
            for sample in (sample for family in metric.collect() for sample in family.samples):
                if sample.labels.get("outcome") != "rejected":
                    counts[sample.labels["endpoint"], sample.labels.get("reason", "")] += int(sample.value)
        return counts
