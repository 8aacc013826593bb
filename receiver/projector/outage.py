"""What the log says of database outages: one line each for begin and end, also while the database comes and goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

logger = logging.getLogger(__name__)

_STEADY = 60.0  # seconds without a failure, after which the next one is a new outage
_MOST_PROBLEMS = 5


class Outages:
    """Told of each attempt at the database, and logs what is new. `now` gives POSIX seconds.

    The first return of the database is said at once. If it fails again within `_STEADY` seconds, that is said once, and
    then nothing until it has been up for as long.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._since: float | None = None  # of the outage
        self._problems: set[tuple[str, str]] = set()
        self._returned_at = float("-inf")
        self._is_up = True
        self._is_flapping = False

    def failed(self, reason: str, problem: str, remedy: str) -> None:
        """An attempt has failed."""
        self._is_up = False
        if self._since is None:
            self._is_flapping = self._now() < self._returned_at + _STEADY
            self._since = self._now()
        found = reason, problem
        # An outage may change its face: it is said once of each, and not of ever more.
        if found in self._problems or len(self._problems) >= _MOST_PROBLEMS:
            return
        message = "database still down" if self._problems else "database down"
        self._problems.add(found)
        details = {"reason": reason, "problem": problem, "since": _time(self._since)}
        then = [remedy] if remedy else []
        then.append("callbacks wait in the journal")
        if self._is_flapping:
            then.append(f"it comes and goes, so nothing more is said until it has been up for {_STEADY:g} s")
        logger.error(message, extra=details | {"next": "; ".join(then)})

    def succeeded(self) -> None:
        """An attempt has succeeded."""
        if self._since is None:
            return
        if not self._is_up:
            self._is_up, self._returned_at = True, self._now()
        if self._is_flapping and self._now() < self._returned_at + _STEADY:
            return
        lasted = round(self._returned_at - self._since, 1)
        logger.warning("database up again", extra={"since": _time(self._since), "seconds": lasted})
        self._since = None
        self._problems.clear()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
