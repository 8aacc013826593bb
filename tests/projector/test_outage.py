"""What the log says of outages."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from receiver.projector.outage import Outages

NOON = 1726012800.0


class Clock:
    """A time that tests move on."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def said(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[Any, ...]]:
    return [(one.message, *(vars(one).get(name) for name in names)) for one in caplog.records]


def test_since_when_and_what_next(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Each line says since when, the first ones what to do, and the last one how long it took."""
    outages = Outages(clock)
    outages.succeeded()
    outages.failed("connection", "refused (a:1)", "start it")
    clock.now += 30
    outages.failed("connection", "refused (a:1)", "start it")
    outages.failed("schema", "missing", "")
    clock.now += 31.26
    for _ in range(3):
        outages.succeeded()
        clock.now += 5
    assert said(caplog, "problem", "since", "next", "seconds") == [
        ("database down", "refused (a:1)", "2024-09-11T00:00:00Z", "start it; callbacks wait in the journal", None),
        ("database still down", "missing", "2024-09-11T00:00:00Z", "callbacks wait in the journal", None),
        ("database up again", None, "2024-09-11T00:00:00Z", None, 61.3),
    ]
    assert [one.levelno for one in caplog.records] == [logging.ERROR, logging.ERROR, logging.WARNING]


def test_database_that_comes_and_goes(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A database that fails again and again has four lines, however often, and the last is said when that is over."""
    outages = Outages(clock)
    for _ in range(1000):
        outages.failed("connection", "refused", "start it")
        clock.now += 7
        outages.succeeded()
        clock.now += 50
        outages.succeeded()
    down, up, again = said(caplog, "since")
    assert (down, up) == (("database down", "2024-09-11T00:00:00Z"), ("database up again", "2024-09-11T00:00:00Z"))
    assert again == ("database down", "2024-09-11T00:00:57Z")
    assert "up for 60 s" in vars(caplog.records[-1])["next"]
    clock.now += 60
    outages.succeeded()
    assert said(caplog, "seconds")[3:] == [("database up again", 57 * 998 + 7.0)]


def test_next_outage(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """After a quiet minute the next outage is one of its own."""
    outages = Outages(clock)
    for _ in range(2):
        outages.failed("connection", "refused", "start it")
        outages.succeeded()
        clock.now += 61
    assert [message for (message,) in said(caplog)] == ["database down", "database up again"] * 2
    assert not any("comes and goes" in str(vars(one).get("next")) for one in caplog.records)
