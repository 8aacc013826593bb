from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from receiver.web.status.bars import Bar, bar

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOON + timedelta(seconds=seconds)


def session(begin: float, end: float | None) -> dict[str, Any]:
    return {"connected_at": at(begin), "disconnected_at": at(end)}


def outage(begin: float, end: float | None) -> dict[str, Any]:
    return {"down_from": at(begin), "down_to": at(end)}


def drawn(sessions: list[dict[str, Any]], outages: list[dict[str, Any]], seconds: float, until: float) -> Bar:
    found = bar(sessions, outages, NOON, NOON + timedelta(seconds=seconds), NOON + timedelta(seconds=until))
    assert found is not None
    return found


def test_connected_down_and_unknown() -> None:
    """What is neither connected nor down is unknown; the parts stand where they were, in percent."""
    found = drawn([session(-50, 25), session(50, None)], [outage(25, 50)], 100, 75)
    assert [(one.x, one.width, one.state) for one in found.segments] == [
        (0, 25, "connected"),
        (25, 25, "down"),
        (50, 25, "connected"),
        (75, 25, "unknown"),
    ]
    assert (found.connected, found.down) == (50, 25)


def test_short_outage_is_seen() -> None:
    """An outage of a second in a day still has a place in the bar."""
    found = drawn([session(0, 40_000), session(40_001, None)], [outage(40_000, 40_001)], 86_400, 86_400)
    assert [one.state for one in found.segments] == ["connected", "down", "connected"]
    assert found.down == 1


def test_no_time() -> None:
    """Where no time has passed there is no bar."""
    assert bar([session(0, None)], [], NOON, NOON, NOON) is None


times = st.floats(-1000, 5000)
spans = st.lists(st.tuples(times, times | st.none()), max_size=20)


@given(spans, spans, st.floats(0.001, 4000), times)
def test_segments_fill_the_bar(
    sessions: list[tuple[float, float | None]],
    outages: list[tuple[float, float | None]],
    seconds: float,
    until: float,
) -> None:
    """Whatever is drawn, the segments stand side by side, none is like the next, and they are not too many."""
    found = bar(
        [session(*one) for one in sessions],
        [outage(*one) for one in outages],
        NOON,
        NOON + timedelta(seconds=seconds),
        NOON + timedelta(seconds=until),
    )
    assert found is None or sum(one.width for one in found.segments) > 99.7
    segments = found.segments if found is not None else ()
    assert len(segments) <= 600
    for one, after in pairwise(segments):
        assert abs(one.x + one.width - after.x) < 0.01
        assert one.state != after.state
