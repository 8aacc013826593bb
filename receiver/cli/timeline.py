"""Draws the history for people: at 80 columns, aligned in Chinese too, and safe whatever a title holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from receiver.database.history import JobHistory, connected_seconds, lasted, lasts_until, outage_seconds, paragraph
from receiver.database.insert import Row
from receiver.protocol.events import EventType, StreamState
from receiver.protocol.platform import ENDED, Finding
from receiver.text import duration, printable

_SHORT_ID = 10  # characters of an id, on a terminal: enough to ask for it
_LONGEST = 200  # characters that a line takes on a terminal
_BAR = 60  # characters
_ALL = 0.999  # of a character's time
_PLAYED = (EventType.SHOOT_SCRIPT_SWITCH, EventType.REPLY_COMMAND_FINISH)
_COLOURS = {StreamState.CONNECTED: "green", StreamState.CONNECTING: "yellow", StreamState.END: "dim"}
_NOT_CONNECTED = "red"
_ENDED_THERE = "ended there"
_FOUND = {  # of a job that has events here
    Finding.END_MISSING: "no END came here",
    Finding.SILENT: "nothing came here for five minutes",
    Finding.DURATION_GAP: "connected for another time than here",
    Finding.UNKNOWN_THERE: "there is no such job",
}


def draw_jobs(console: Console, jobs: Sequence[Row], now: datetime) -> None:
    """Print rows of `live_jobs`, a line each; whole ids where it is no terminal. `now` is where what lasts ends."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("job", no_wrap=True)
    table.add_column("room", no_wrap=True)
    longest = max(map(len, StreamState)) if console.is_terminal else None
    table.add_column("state", no_wrap=True, overflow="ellipsis", max_width=longest)
    table.add_column("since (UTC)", no_wrap=True)
    for name in ("connected", "rec.", "par.", "rep."):
        table.add_column(name, no_wrap=True, justify="right")
    for row in jobs:
        since = row["state_since"] or row["last_event_at"]
        table.add_row(
            short_id(row["job_id"], whole=not console.is_terminal),
            short_room(row, whole=not console.is_terminal),
            _state_now(row),
            _time(since),
            duration(connected_seconds(row, now)),
            *(str(row[name]) for name in ("reconnects", "paragraphs", "replies")),
        )
    console.print(table)
    console.print(Text("rec.: reconnects, par.: paragraphs, rep.: replies", style="dim"))


def _state_now(job: Row) -> Text:
    if job["state"] != StreamState.END and job["platform_state"] in ENDED:
        return Text(_ENDED_THERE, style="dim")
    return Text("stale", style=_NOT_CONNECTED) if job["stale"] else _state(job["state"])


def draw_event(console: Console, row: Row, *, with_job: bool) -> None:
    """Print one event in a line: when it was sent, its job, and what it was."""
    if row["state"] is not None:
        what = _state(row["state"])
        what.append(f" {printable(row['output_url'])}" if row["output_url"] else "", style="default")
    elif row["event_type"] in _PLAYED:
        what = Text(printable(_played(row)))
    else:
        what = Text(printable(row["event_type"]))
    job = Text.assemble(short_id(row["job_id"], whole=not console.is_terminal), "  ") if with_job else ""
    console.print(Text.assemble(_time(row["sent_at"]), "  ", job, what), soft_wrap=True)


def draw_job(console: Console, history: JobHistory, now: datetime) -> None:
    """Print one job: its totals, a bar of when it was connected, and its timeline. `now` is where what lasts ends."""
    job, sessions, timeline, outages, there = history
    for name, value in _totals(job, outages, there, now):
        console.print(Text.assemble((f"{name:<8}", "bold"), value), soft_wrap=True)
    bar = _bar(sessions, job["first_event_at"], lasts_until(job, now))
    if bar is not None:
        console.print(bar, soft_wrap=True)
    console.print()
    if not console.is_terminal:
        for at, length, what in _lines(timeline, job, now):
            console.print(Text.assemble(_time(at), f"  {length:>9}  ", what), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(overflow="fold")
    for at, length, what in _lines(timeline, job, now):
        what.truncate(_LONGEST, overflow="ellipsis")
        table.add_row(f"{at:%m-%d %H:%M:%S}", length, what)
    console.print(table)


def _totals(job: Row, outages: Sequence[Row], there: Row | None, now: datetime) -> Iterator[tuple[str, Text | str]]:
    yield "job", printable(job["job_id"])
    name = f" {there['room_name']}" if there is not None and there["room_name"] else ""
    yield "room", printable((job["room_id"] or "-") + name)
    state = _state(job["state"])
    if job["state"] is not None:
        ago = f", {duration(_since(job['state_since'], now))} ago" if job["state"] != StreamState.END else ""
        if job["state"] != StreamState.END and there is not None and there["state"] in ENDED:
            ago += f"; {_ENDED_THERE}"
        elif job["stale"]:
            ago += "; stale: it is not known whether it still runs"
        state.append(f" since {_time(job['state_since'])} UTC{ago}", style="default")
    yield "state", state
    if there is not None:
        yield "there", printable(_seen_there(there))
    first, last = job["first_event_at"], job["last_event_at"]
    length = duration((last - first).total_seconds())
    yield "events", f"{job['events']} in {length}, {_time(first)} to {_time(last)}"
    down = outage_seconds(outages, job, now)
    lost = f"; down {duration(sum(down))}, at most {duration(max(down))} at once" if any(down) else ""
    yield "stream", f"connected {duration(connected_seconds(job, now))}; reconnects {job['reconnects']}{lost}"
    yield "script", f"paragraphs {job['paragraphs']}; replies {job['replies']}"


def _seen_there(job: Row) -> str:
    """How the platform saw a job, and why it ended, as far as it says."""
    began, ended = (None if job[name] is None else _time(job[name]) for name in ("start_time", "end_time"))
    times = f" {began or '-'} to {ended or '-'} UTC" if began or ended else ""
    why = " ".join(job[name] for name in ("error_code", "error_msg", "block_reason") if job[name])
    found = _FOUND.get(job["finding"], "")
    parts = (f"MetaStudio says {job['state'] or 'nothing'}{times}", why, found, f"asked {_time(job['checked_at'])}")
    return "; ".join(filter(None, parts))


def _bar(sessions: Sequence[Row], first: datetime, last: datetime) -> Text | None:
    """The time from the first event to the last one, or to now: `=` connected, `-` for a part of it, `.` not at all."""
    step = (last - first) / _BAR
    if step <= timedelta(0):
        return None
    bar = Text("        ")
    for number in range(_BAR):
        begin, end = first + number * step, first + (number + 1) * step
        parts = (min(one["disconnected_at"] or last, end) - max(one["connected_at"], begin) for one in sessions)
        share = sum((max(part, timedelta(0)) for part in parts), timedelta(0)) / step
        bar.append(
            *(("=", "green") if share > _ALL else (".", _NOT_CONNECTED) if share < 1 - _ALL else ("-", "yellow"))
        )
    return bar


def _lines(timeline: Sequence[Row], job: Row, now: datetime) -> Iterator[tuple[datetime, str, Text]]:
    """Time, duration and text of each line. What was played hangs on the state: `|` connected, `:` not."""
    rail, style, url = ":", _NOT_CONNECTED, None
    for row in timeline:
        if row["event_type"] == EventType.RTMP_STREAM_STATE_CHANGE:
            rail, style = ("|", "green") if row["state"] == StreamState.CONNECTED else (":", _NOT_CONNECTED)
            text = _state(row["state"])
            if row["output_url"] not in (None, url):
                url = row["output_url"]
                text.append(f" {printable(url)}", style="default")
        else:
            text = Text.assemble((f"  {rail} ", style), printable(_played(row)))
        yield row["at"], _lasted(row, job, now), text


def _lasted(row: Row, job: Row, now: datetime) -> str:
    seconds, still = lasted(row, job, now)
    return "" if seconds is None else duration(seconds) + ("+" if still else "")


def _played(row: Row) -> str:
    if row["event_type"] == EventType.REPLY_COMMAND_FINISH:
        return f"reply {row['reply_id'] or ''}"
    return paragraph(row) or "a paragraph"


def short_id(value: str | None, *, whole: bool) -> Text:
    """An id, on a terminal as much of it as is enough to ask for it."""
    return Text(printable((value or "-") if whole else (value or "-")[:_SHORT_ID]))


def short_room(row: Row, *, whole: bool) -> Text:
    """A room's name, where it is known, or its id; on a terminal as much of it as there is room for."""
    if row["room_name"] is None:
        return short_id(row["room_id"], whole=whole)
    name = Text(printable(row["room_name"]))
    if not whole:
        name.truncate(_SHORT_ID, overflow="ellipsis")
    return name


def _state(state: str | None) -> Text:
    return Text(printable(state or "-"), style=_COLOURS.get(state, _NOT_CONNECTED) if state else "dim")  # type: ignore[call-overload]


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"


def _since(time: datetime, now: datetime) -> float:
    return max((now - time).total_seconds(), 0)
