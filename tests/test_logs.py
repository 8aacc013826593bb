from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from receiver.logs import HumanFormatter, JSONFormatter, RateLimit, set_up


def record(
    message: str = "database down", *values: Any, level: int = logging.ERROR, **fields: Any
) -> logging.LogRecord:
    """A record as a logger makes it, at a known time."""
    made = logging.getLogger("receiver.test").makeRecord(
        "receiver.test", level, "file.py", 1, message, values, None, extra=fields
    )
    made.created = 1725928200.1239
    return made


# Each would change what a terminal shows after it, or what is taken for a line.
HARMFUL = [
    "two\nlines",
    "x\r\n00:30:00 info    started",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31mred",
    "\x7f\x08",
    "\u202eright to left\u2066",
    "\u2028\x85",
    "\udcff",
]


def with_traceback() -> logging.LogRecord:
    made = record("crashed")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    return made


def test_json_line() -> None:
    """A line is one JSON object: time in UTC, level, event with its values in place, then the event's own fields."""
    line = JSONFormatter().format(
        record("%s of %d", "商品1", 2, level=logging.WARNING, reason="connection", path=Path("/j"))
    )
    assert list(json.loads(line).items()) == [
        ("time", "2024-09-10T00:30:00.123+00:00"),
        ("level", "warning"),
        ("event", "商品1 of 2"),
        ("reason", "connection"),
        ("path", "/j"),
    ]
    assert "商品1" in line


@pytest.mark.parametrize("value", [*HARMFUL, 'a "quoted" word', b"\xff", {"a": [1]}, float("nan"), None])
def test_json_line_is_one_line(value: Any) -> None:
    """Whatever a field holds, the line is one line that controls no terminal, and is read back."""
    line = JSONFormatter().format(record(value=value))
    assert line.isprintable()
    read = json.loads(line)["value"]
    assert read == value or not isinstance(value, str)


def test_json_traceback() -> None:
    """A traceback is a field of its line."""
    line = JSONFormatter().format(with_traceback())
    assert len(line.splitlines()) == 1
    assert "ZeroDivisionError" in json.loads(line)["traceback"]


def test_human_line() -> None:
    """On a terminal a line is the time of day, level, event and name=value."""
    line = HumanFormatter().format(record("callback rejected", level=logging.INFO, reason="stale", endpoint="default"))
    assert line == "00:30:00 info    callback rejected  reason=stale  endpoint=default"
    assert HumanFormatter().format(record("started")) == "00:30:00 error   started"


def test_human_traceback() -> None:
    """A traceback follows below its line, indented."""
    first, *rest = HumanFormatter().format(with_traceback()).splitlines()
    assert first == "00:30:00 error   crashed"
    assert "ZeroDivisionError" in rest[-1]
    assert all(line.startswith("  ") for line in rest)


PROGRAM = """
import logging
from receiver.logs import set_up

set_up()
logger = logging.getLogger("receiver.test")
for text in {harmful!a}:
    logger.warning("said %s", text, extra={{"value": text, "values": [text]}})
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("crashed")
"""


def test_on_a_terminal() -> None:
    """Nothing that comes from outside controls the terminal, turns text round, or looks like another line."""
    own, other = pty.openpty()
    command = [sys.executable, "-c", PROGRAM.format(harmful=HARMFUL)]
    with subprocess.Popen(command, stderr=other) as process:
        os.close(other)
        shown = b""
        with suppress(OSError):  # which a terminal's end is
            while chunk := os.read(own, 65536):
                shown += chunk
    os.close(own)
    assert process.returncode == 0
    lines = shown.decode().split("\r\n")
    assert all(line.isprintable() for line in lines)
    begins = [line for line in lines if line and not line.startswith("  ")]
    assert [re.sub(r"^[0-9:]{8} (\w+) .*", r"\1", line) for line in begins] == ["warning", "error"] * len(HARMFUL)
    for text in HARMFUL:
        assert f"  value={json.dumps(text)[1:-1]}  " in shown.decode()


class Clock:
    """A clock that stands until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passed(limit: RateLimit, message: str, count: int, *, left_out: int = 0) -> int:
    """Pass the same message `count` times; returns how many were let through, the first of which says `left_out`."""
    records = [record(message, number) for number in range(count)]
    through = [one for one in records if limit.filter(one)]
    said = [vars(one).get("left_out", 0) for one in records]
    assert said == [left_out, *[0] * (count - 1)]
    return len(through)


def test_rate_limit(clock: Clock) -> None:
    """So many lines of a message pass in a window, whatever their values; the first of the next says what it missed."""
    limit = RateLimit(3, 10, clock)
    assert passed(limit, "rejected %d", 2) == 2
    clock.now += 9.99
    assert passed(limit, "rejected %d", 5) == 1
    clock.now += 0.01
    assert passed(limit, "rejected %d", 5, left_out=4) == 3
    clock.now += 1000
    assert passed(limit, "rejected %d", 1, left_out=2) == 1


def test_rate_limit_that_is_just_reached(clock: Clock) -> None:
    """Where all lines of a window passed, the next says nothing."""
    limit = RateLimit(3, 10, clock)
    assert passed(limit, "rejected %d", 3) == 3
    clock.now += 10
    assert passed(limit, "rejected %d", 1) == 1


def test_rate_limit_is_for_each_message(clock: Clock) -> None:
    """One message's flood does not hide another, nor the same words of another logger."""
    limit = RateLimit(1, 10, clock)
    assert passed(limit, "rejected %d", 100) == 1
    assert passed(limit, "database down %d", 1) == 1
    other = record("rejected %d", 1)
    other.name = "another"
    assert limit.filter(other)


def test_rate_limit_has_bounded_memory(clock: Clock) -> None:
    """Messages that are never the same, as libraries log them, do not grow the memory for ever."""
    limit = RateLimit(3, 10, clock)

    def flood(start: int) -> int:
        for number in range(start, start + 20_000):
            limit.filter(record(f"connection {number:050} lost"))
            clock.now += 1
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = flood(0)
        assert flood(20_000) - before < 500_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def loggers() -> Iterator[None]:
    """The loggers as they were, afterwards."""
    root, own = logging.getLogger(), logging.getLogger("receiver")
    before = root.level, root.handlers[:], own.level
    root.handlers.clear()  # pytest's own, which `set_up` would close
    yield
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    own.setLevel(before[2])


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(("stream", "formatter"), [(io.StringIO(), "json"), (Terminal(), "human")])
def test_set_up(stream: io.StringIO, formatter: str) -> None:
    """The receiver's logs go to the stream from INFO on, those of libraries from WARNING on, at a bounded rate."""
    set_up(stream)
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("of use")
    logging.getLogger("receiver.journal").debug("chatter")
    for number in range(30):
        logging.getLogger("receiver.journal").info("started", extra={"number": number})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 20
    if formatter == "json":
        assert [json.loads(line)["event"] for line in lines] == ["of use", *["started"] * 20]
    else:
        assert lines[1].endswith("info    started  number=0")
