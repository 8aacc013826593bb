"""Bars of when a stream was connected, down, or not known to be either: segments for inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from receiver.database.insert import Row

_SLOTS = 600  # in which a bar is drawn: what is shorter shares one
CONNECTED, DOWN, UNKNOWN = "connected", "down", "unknown"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: where it begins and how wide it is, in percent, and `connected`, `down` or `unknown`."""

    x: float
    width: float
    state: str


@dataclass(frozen=True, slots=True)
class Bar:
    """From a time to another; `connected` and `down` are seconds, as far as known."""

    begin: datetime
    end: datetime
    segments: tuple[Segment, ...]
    connected: float
    down: float


def bar(sessions: Iterable[Row], outages: Iterable[Row], begin: datetime, end: datetime, until: datetime) -> Bar | None:
    """A bar from `begin` to `end`; what lasts counts up to `until`. None where no time is between them."""
    length = (end - begin).total_seconds()
    if length <= 0:
        return None
    spans = {
        CONNECTED: [*_within(sessions, "connected_at", "disconnected_at", begin, min(end, until))],
        DOWN: [*_within(outages, "down_from", "down_to", begin, min(end, until))],
    }
    slots = [UNKNOWN] * _SLOTS
    for state in (CONNECTED, DOWN):  # an outage is seen however short it is
        for first, last in spans[state]:
            low = min(int(first / length * _SLOTS), _SLOTS - 1)
            high = max(round(last / length * _SLOTS), low + 1)
            slots[low:high] = [state] * (min(high, _SLOTS) - low)
    connected, down = (sum(last - first for first, last in spans[state]) for state in (CONNECTED, DOWN))
    return Bar(begin, end, tuple(_segments(slots)), connected, down)


def _within(
    rows: Iterable[Row], began: str, ended: str, begin: datetime, end: datetime
) -> Iterator[tuple[float, float]]:
    """From and to, in seconds after `begin`, of each row that has a part in the time."""
    for row in rows:
        first, last = max(row[began], begin), min(row[ended] or end, end)
        if first < last:
            yield (first - begin).total_seconds(), (last - begin).total_seconds()


def _segments(slots: list[str]) -> Iterator[Segment]:
    start = 0
    for place in range(1, _SLOTS + 1):
        if place == _SLOTS or slots[place] != slots[start]:
            yield Segment(round(100 * start / _SLOTS, 3), round(100 * (place - start) / _SLOTS, 3), slots[start])
            start = place
