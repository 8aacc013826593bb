"""What the templates are given: plain values, computed, made safe, and without secrets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlsplit

from receiver.database.history import JobHistory, connected_seconds, lasted, lasts_until, outage_seconds, paragraph
from receiver.database.insert import Row
from receiver.database.overview import BAR, Overview
from receiver.protocol.events import EventType, StreamState
from receiver.protocol.platform import ENDED
from receiver.text import shortened
from receiver.web.status.bars import Bar, bar
from receiver.web.status.figures import Database, Journal

_LONGEST_LINK = 8192  # characters: a request with more is refused
STALE, ENDED_THERE = "stale", "ended there"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected request: `advice` is what the doctor says, in English, line by line."""

    at: datetime
    endpoint: str
    reason: str
    client: str
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The callbacks since a time: how many were accepted, and how many rejected, by endpoint and reason."""

    since: datetime
    accepted: int
    rejected: tuple[tuple[str, str, int], ...]
    latest: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A job. `state` is a stream's, or "stale", "ended there", or ""; `link` leads to its page."""

    id: str
    link: str
    room: str
    state: str
    since: datetime
    connected: float
    reconnects: int
    paragraphs: int
    replies: int
    last_event_at: datetime
    on_now: str
    on_now_since: datetime | None
    product: str
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Event:
    """An event: `kind` is "state", "paragraph", "reply" or "other", `what` the state or what was played."""

    at: datetime
    job: str
    link: str
    room: str
    kind: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Stale:
    """A job that never sent END, and has sent nothing for long. `there` is the platform's state, or ""."""

    job: str
    link: str
    room: str
    state: str
    since: datetime
    there: str


@dataclass(frozen=True, slots=True)
class Found:
    """What reconciling found about a job: `finding` is one of `Finding`."""

    job: str
    link: str
    room: str
    finding: str
    there: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds."""

    live: tuple[Job, ...]
    has_more_live: bool
    latest: tuple[Job, ...]
    events: tuple[Event, ...]
    stale: tuple[Stale, ...]
    findings: tuple[Found, ...]
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Status:
    """The page. `stored` is None where the database does not answer in time."""

    now: datetime
    journal: Journal
    database: Database
    certificate_end: datetime | None
    callbacks: Callbacks
    stored: Stored | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of a job's timeline: `seconds` is how long it lasted, None where not known; `lasts` if it still does."""

    at: datetime
    seconds: float | None
    lasts: bool
    kind: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class JobPage:
    """A job's page: what `receiver history` shows. `is_cut` where only its latest events are shown.

    Of its outages there are the count, and in seconds the sum and the longest. `there` is the platform's state, ""
    where it was not asked; it saw the job from `there_from` to `there_to`, and says why it ended.
    """

    now: datetime
    job: Job
    events: int
    first_event_at: datetime
    outages: int
    down: float
    longest: float
    there: str
    there_from: datetime | None
    there_to: datetime | None
    there_why: str
    finding: str
    checked_at: datetime | None
    moments: tuple[Moment, ...]
    is_cut: bool
    is_over: bool


def stored(found: Overview, now: datetime) -> Stored:
    """The view of what was read from the database."""
    live = {row["job_id"] for row in found.live}
    return Stored(
        live=tuple(_live(row, found, now) for row in found.live),
        has_more_live=found.has_more_live,
        latest=tuple(_job(row, now) for row in found.latest if row["job_id"] not in live),
        events=tuple(_event(row) for row in found.events),
        stale=tuple(_stale(row) for row in found.stale),
        findings=tuple(_found(row) for row in found.findings),
        checked_at=found.checked_at,
    )


def job_page(history: JobHistory, now: datetime, most: int) -> JobPage:
    """The view of a job's history, of which at most so many rows of each kind were read."""
    row, there = history.live_job, history.platform_job or {}
    named = row | {"room_name": there.get("room_name"), "platform_state": there.get("state")}
    down = outage_seconds(history.stream_outages, row, now)
    until = lasts_until(row, now)
    whole = bar(history.stream_sessions, history.stream_outages, row["first_event_at"], until, until)
    return JobPage(
        now=now,
        job=_job(named, now, whole),
        events=row["events"],
        first_event_at=row["first_event_at"],
        outages=len(down),
        down=sum(down),
        longest=max(down, default=0.0),
        there=shortened(there.get("state") or ""),
        there_from=there.get("start_time"),
        there_to=there.get("end_time"),
        there_why=shortened(" ".join(filter(None, map(there.get, ("error_code", "error_msg", "block_reason"))))),
        finding=there.get("finding") or "",
        checked_at=there.get("checked_at"),
        moments=tuple(_moment(one, row, now) for one in history.timeline),
        is_cut=len(history.timeline) >= most,
        is_over=row["state"] == StreamState.END or row["stale"],
    )


def output(url: str | None) -> str:
    """Where a stream goes, without the path, which may be a key."""
    try:
        parts = urlsplit(url or "")
        return shortened(f"{parts.scheme}://{parts.hostname}") if parts.scheme and parts.hostname else ""
    except ValueError:
        return ""


def _live(row: Row, found: Overview, now: datetime) -> Job:
    begin, until = now - BAR, lasts_until(row, now)
    sessions, outages = (
        [one for one in rows if one["job_id"] == row["job_id"]] for rows in (found.sessions, found.outages)
    )
    return _job(row, now, bar(sessions, outages, begin, now, until), found.on_now.get(row["job_id"]))


def _job(row: Row, now: datetime, its_bar: Bar | None = None, on_now: Row | None = None) -> Job:
    product = (on_now or {}).get("product_title") or (on_now or {}).get("product_id") or ""
    return Job(
        id=shortened(row["job_id"] or "-"),
        link=_link(row["job_id"]),
        room=shortened(row["room_name"] or row["room_id"] or "-"),
        state=_state(row),
        since=row["state_since"] or row["last_event_at"],
        connected=connected_seconds(row, now),
        reconnects=row["reconnects"],
        paragraphs=row["paragraphs"],
        replies=row["replies"],
        last_event_at=row["last_event_at"],
        on_now=shortened(paragraph({**on_now, "product_title": None, "product_id": None})) if on_now else "",
        on_now_since=on_now["sent_at"] if on_now else None,
        product=shortened(product),
        bar=its_bar,
    )


def _state(row: Row) -> str:
    if row["state"] != StreamState.END and row["platform_state"] in ENDED:
        return ENDED_THERE
    return STALE if row["stale"] else shortened(row["state"] or "")


def _event(row: Row) -> Event:
    kind, what, detail = _said(row)
    return Event(
        row["sent_at"],
        shortened(row["job_id"] or "-"),
        _link(row["job_id"]),
        shortened(row["room_id"] or "-"),
        kind,
        what,
        detail,
    )


def _moment(row: Row, job: Row, now: datetime) -> Moment:
    seconds, lasts = lasted(row, job, now)
    return Moment(row["at"], seconds, lasts, *_said(row))


def _said(row: Row) -> tuple[str, str, str]:
    """The kind of an event, what it says, and what there is beside it."""
    if row["state"] is not None:
        return "state", shortened(row["state"]), output(row["output_url"])
    if row["event_type"] == EventType.SHOOT_SCRIPT_SWITCH:
        return "paragraph", shortened(paragraph(row)), ""
    if row["event_type"] == EventType.REPLY_COMMAND_FINISH:
        return "reply", shortened(row["reply_id"] or ""), ""
    return "other", shortened(row["event_type"]), ""


def _stale(row: Row) -> Stale:
    job_id, there = row["job_id"], row["platform_state"]
    room = shortened(row["room_id"] or "-")
    return Stale(shortened(job_id), _link(job_id), room, shortened(row["state"]), row["since"], shortened(there or ""))


def _found(row: Row) -> Found:
    job_id, room = row["job_id"], row["room_name"] or row["room_id"] or "-"
    return Found(
        shortened(job_id), _link(job_id), shortened(room), shortened(row["finding"]), shortened(row["state"] or "")
    )


def _link(job_id: str | None) -> str:
    quoted = quote(job_id or "", safe="", errors="replace")
    return f"/jobs/{quoted}" if 0 < len(quoted) < _LONGEST_LINK else ""
