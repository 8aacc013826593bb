"""Ages and times as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

import click

from receiver.protocol.signature import LAST_SECOND

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def age(value: str, units: str) -> timedelta | None:
    """What a number and one of these units mean, such as 12h; None where it is no age."""
    match = re.fullmatch(rf"([0-9]{{1,5}})([{units}])", value)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


def age_or_time(option: str, value: str, zone: tzinfo, now: datetime) -> datetime:
    """When that was, in UTC; raises `click.UsageError` where it is neither."""
    ago = age(value, "dhm")
    moment = _iso_time(value, zone) if ago is None else now - ago
    if moment is None:
        raise click.UsageError(f"{option}: is neither an age, such as 12h, 7d or 30m, nor a time, such as 2026-03-01")
    return moment


def read_time(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Of an option: POSIX seconds, or ISO 8601, which is in UTC where it names no zone."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        found = _iso_time(value, UTC)
        seconds = -1 if found is None else found.timestamp()
    if not 0 <= seconds <= LAST_SECOND:
        raise click.BadParameter("is not a time, such as 2026-03-01T20:00:00+08:00, or 1767225600 in POSIX seconds")
    return seconds


def _iso_time(value: str, zone: tzinfo) -> datetime | None:
    """The time that ISO 8601 means, which is one of `zone` where it has no offset; None where it is none."""
    try:
        found = datetime.fromisoformat(value)
        return (found.replace(tzinfo=zone) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
