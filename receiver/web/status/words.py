"""How the status page says times: short, for people who look for what is new."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # seconds


def lasting(seconds: float, units: Sequence[str]) -> str:
    """Such as `23 s`, `14 min`, `2 h 47 min` or `12 d`; `units` are the words for day, hour, minute and second."""
    day, hour, minute, second = units
    whole = max(int(seconds), 0)
    if whole < _MINUTE:
        return f"{whole}{second}"
    if whole < _HOUR:
        return f"{whole // _MINUTE}{minute}"
    if whole < _DAY:
        return f"{whole // _HOUR}{hour} {whole % _HOUR // _MINUTE}{minute}"
    return f"{whole // _DAY}{day}"


def clock(value: datetime, now: datetime) -> str:
    """The time of day, with the date where that is another one than of `now`."""
    return f"{value:%H:%M:%S}" if value.date() == now.date() else f"{value:%Y-%m-%d %H:%M:%S}"
