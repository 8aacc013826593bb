"""Asks the platform what it did, and finds which callbacks never came. Nothing is made up: no event is stored."""

from __future__ import annotations

import http.client
import math
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from receiver.database.database import Database
from receiver.database.insert import Row
from receiver.database.platform import OpenJob, open_jobs, rows_of, save_platform_jobs
from receiver.database.schema import live_jobs
from receiver.platform.client import Json, Platform, PlatformError, is_id
from receiver.platform.register import registered_url
from receiver.protocol.events import StreamState
from receiver.protocol.platform import ENDED, OPEN, Finding, JobState

_WINDOW = timedelta(hours=24)
_LONGEST_JOB = timedelta(days=8)  # 168 hours, and what it waits
_LATE = timedelta(minutes=5)  # what a callback may take; after that it counts as lost
_MOST_LOOK_UPS = 200  # of single jobs: the others are looked up the next time
_BEHIND = 30.0  # seconds that something waits in the journal
_GAP, _GAP_SHARE = 60.0, 0.05  # seconds and share that a stream's duration may differ
_LONGEST = 1000  # characters of a text that is kept
_OK = 200
_TIMEOUT = 10  # seconds


class PlatformJob(NamedTuple):
    """A job as the platform shows it, without what is not to be kept; `url` is where callbacks go."""

    job_id: str
    room_id: str | None
    room_name: str | None
    state: str | None
    start_time: datetime | None
    end_time: datetime | None
    stream_duration: float | None
    error_code: str | None
    error_msg: str | None
    block_reason: str | None
    url: str | None

    def row(self, finding: Finding | None, checked_at: datetime) -> Row:
        """As a row of `platform_jobs`."""
        fields = self._asdict()
        del fields["url"]
        return fields | {"finding": finding, "checked_at": checked_at}


def read_job(data: Json) -> PlatformJob:
    """A `SmartLiveJob`; what is not of the published form counts as left out."""
    error = data.get("error_info")
    error = error if isinstance(error, dict) else {}
    return PlatformJob(
        job_id=_text(data["job_id"]) or "",
        room_id=_text(data.get("room_id")),
        room_name=_text(data.get("room_name")),
        state=_text(data.get("state")),
        start_time=_time(data.get("start_time")),
        end_time=_time(data.get("end_time")) or (_time(data.get("lastupdate_time")) if _has_ended(data) else None),
        stream_duration=_number(data.get("stream_duration")),
        error_code=_text(error.get("error_code")),
        error_msg=_text(error.get("error_msg")),
        block_reason=_text(data.get("block_reason")),
        url=registered_url(data),
    )


def _has_ended(data: Json) -> bool:
    return data.get("state") in ENDED


def judge(
    job: PlatformJob, here: Row | None, urls: Iterable[str], tenant_url: str | None, now: datetime
) -> Finding | None:
    """What is wrong with a job, of which `here` is the row of `live_jobs`; None where nothing of it came.

    `urls` are the receiver's; `tenant_url` is where callbacks go of a job that names no URL itself.
    """
    url = job.url or tenant_url
    if here is None and url is not None and url not in urls:
        return Finding.REGISTERED_ELSEWHERE
    is_ours = here is not None or url is not None
    if job.state in ENDED:
        return _judge_ended(job, here, now) if is_ours else None
    if job.state != JobState.PROCESSING or not is_ours or (here is not None and here["state"] == StreamState.END):
        return None
    latest = job.start_time if here is None else here["last_event_at"]
    return Finding.SILENT if latest is not None and latest <= now - _LATE else None


def _judge_ended(job: PlatformJob, here: Row | None, now: datetime) -> Finding | None:
    if here is not None and here["state"] == StreamState.END:
        there = job.stream_duration
        gap = 0.0 if there is None else abs(there - here["connected_seconds"])
        return Finding.DURATION_GAP if gap > max(_GAP, _GAP_SHARE * (there or 0)) else None
    # A job that failed before it had a stream sends no END.
    has_streamed = job.state == JobState.SUCCEED if job.stream_duration is None else job.stream_duration > 0
    if here is None and not has_streamed:
        return None
    is_late = job.end_time is None or job.end_time <= now - _LATE
    return Finding.END_MISSING if is_late else None


def reconcile(
    platform: Platform, database: Database, urls: Iterable[str], now: datetime, stale_after: float
) -> list[Row]:
    """Ask the platform, store what it says and what that means, and return these rows of `platform_jobs`."""
    with database.reading() as connection:
        expected = open_jobs(connection, now - timedelta(seconds=stale_after))
    tenant_url = registered_url(platform.user_config())
    found = _listed(platform, expected, now)
    missing = [one for one in expected if one.job_id not in found and is_id(one.job_id) and is_id(one.room_id)]
    unknown: list[OpenJob] = []
    for one in missing[:_MOST_LOOK_UPS]:
        data = platform.job(str(one.room_id), one.job_id)
        if data is None:
            unknown.append(one)
        else:
            found[one.job_id] = read_job(data | {"job_id": one.job_id})
    with database.reading() as connection:  # after the platform was asked: what it knows may have come meanwhile
        here = rows_of(connection, live_jobs, sorted(found))
    urls = frozenset(urls)
    rows = [job.row(judge(job, here.get(job_id), urls, tenant_url, now), now) for job_id, job in found.items()]
    rows += [_unknown(one).row(Finding.UNKNOWN_THERE, now) for one in unknown]
    save_platform_jobs(database, rows, now)
    return rows


def _listed(platform: Platform, expected: list[OpenJob], now: datetime) -> dict[str, PlatformJob]:
    """What waits or runs, and what ended since the oldest open job or in a day.

    The former is read first: what ends meanwhile is in both lists, and has ended.
    """
    ids = {one.job_id for one in expected}
    begins = [one.first_sent_at for one in expected if one.first_sent_at is not None]
    since = max(min([now - _WINDOW, *begins]), now - _LONGEST_JOB)
    found = {one.job_id: one for one in map(read_job, platform.jobs(OPEN))}
    for one in map(read_job, platform.jobs(ENDED, create_since=since - _LONGEST_JOB)):
        if one.end_time is None or one.end_time >= since or one.job_id in ids or one.job_id in found:
            found[one.job_id] = one
    return found


def _unknown(job: OpenJob) -> PlatformJob:
    nothing = dict.fromkeys(PlatformJob._fields)
    return PlatformJob(**nothing | {"job_id": job.job_id, "room_id": job.room_id})  # type: ignore[arg-type]


def why_behind(url: str, now: datetime) -> str | None:
    """Why events may be missing in the database, by a receiver's metrics; None where they are not.

    Raises `PlatformError` where these cannot be read.
    """
    try:
        samples = _samples(url)
        events, up = samples["metastudio_journal_events"], samples["metastudio_database_up"]
        waits = now.timestamp() - samples["metastudio_journal_oldest_timestamp_seconds"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise PlatformError(
            f"--metrics: {url} does not show a receiver's metrics ({type(error).__name__}), so that it is not known"
            " whether its journal is behind: see that it runs, and that the address is that of `operations_listen`"
        ) from error
    if not up:
        return f"the receiver at {url} does not reach its database"
    if events and waits > _BEHIND:
        return f"{events:.0f} events have waited in the journal of the receiver at {url}, the oldest for {waits:.0f} s"
    return None


def _samples(url: str) -> dict[str, float]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT)) as connection:
        connection.request("GET", parts.path or "/metrics")
        response = connection.getresponse()
        if response.status != _OK:
            raise ValueError
        text = response.read().decode()
    return {one.name: one.value for family in text_string_to_metric_families(text) for one in family.samples}


def _text(value: Any) -> str | None:  # noqa: ANN401 (whatever JSON has)
    """A text that each database takes."""
    if not isinstance(value, str) or not value:
        return None
    return value[:_LONGEST].replace("\0", "�").encode("utf-8", "replace").decode()


def _time(value: Any) -> datetime | None:  # noqa: ANN401 (whatever JSON has)
    try:
        moment = datetime.fromisoformat(value)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(value: Any) -> float | None:  # noqa: ANN401 (whatever JSON has)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
