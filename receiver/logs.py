"""Logs: one line an event, as JSON or (on a terminal) for people, at a bounded rate."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from receiver.text import escaped

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}

_MOST_MESSAGES = 1000  # to remember


class RateLimit(logging.Filter):
    """Lets `most` lines of each message through in `seconds`; the next line after that says how many were left out.

    A message is its text without its values, so that nobody outside can fill the log by varying them.
    """

    def __init__(self, most: int = 20, seconds: float = 10, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        message = (record.name, str(record.msg))
        began, count = self._windows.get(message, (self._clock(), 0))
        if self._clock() - began >= self._seconds:
            if count > self._most:
                record.left_out = count - self._most
            began, count = self._clock(), 0
        if len(self._windows) >= _MOST_MESSAGES:  # a library that writes values into its messages
            self._windows.clear()
        self._windows[message] = (began, count + 1)
        return count < self._most


class JSONFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, event, then the event's own fields."""
        fields = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        fields |= _details(record)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return escaped(json.dumps(fields, ensure_ascii=False, default=str))


class HumanFormatter(logging.Formatter):
    """The same for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event, then the event's own fields as name=value.

        A traceback is below it, indented, so that nothing in it looks like another event.
        """
        details = "  ".join(f"{name}={value}" for name, value in _details(record).items())
        lines = [f"{_time(record)[11:19]} {record.levelname.lower():7} {record.getMessage()}  {details}".rstrip()]
        if record.exc_info:
            lines += [f"  {line}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(map(escaped, lines))


def set_up(stream: TextIO = sys.stderr) -> None:
    """Send all logs to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if stream.isatty() else JSONFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("receiver").setLevel(logging.INFO)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _details(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
