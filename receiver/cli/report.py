"""The command `report`: what happened on each day in each room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from rich.table import Table
from rich.text import Text

from receiver.cli.export import as_csv, as_json
from receiver.cli.options import config_option, open_database
from receiver.cli.terminal import terminal
from receiver.cli.timeline import short_room
from receiver.cli.times import age_or_time
from receiver.database.insert import Row
from receiver.database.report import COLUMNS, Period, days_of, report
from receiver.database.schema import PARAGRAPH
from receiver.text import duration, printable

_DAYS = 7  # without --since, with today
_MOST_DAYS = 3660


def _read_zone(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tzinfo:
    if value == "UTC":  # is known without the package
        return UTC
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise click.BadParameter(
            f"{printable(value)} is no time zone that this machine knows, such as Asia/Shanghai or UTC; the names come"
            " with the system's package tzdata"
        ) from None


@click.command("report")
@config_option
@click.option("--room", default="", help="Only this room; the beginning of its id is enough.")
@click.option("--since", help="An age, such as 30d, or a time, such as 2026-03-01.  [default: the last 7 days]")
@click.option("--until", help="Up to before this time, such as 2026-04-01.  [default: now]")
@click.option(
    "--time-zone", "zone", default="UTC", show_default=True, callback=_read_zone, help="Whose days these are."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV. A text that begins like a formula gets a ' before it.")
def show_report(  # noqa: PLR0913 (the command's options)
    room: str, since: str | None, until: str | None, zone: tzinfo, *, json_: bool, csv_: bool
) -> None:
    """Show what happened on each day in each room, and in all.

    Jobs, the time connected and down, outages, paragraphs, replies, and the most played paragraph. A session over
    midnight counts in both days; one that lasts counts up to now. Days and times are those of --time-zone.
    """
    if json_ and csv_:
        raise click.UsageError("--json or --csv, not both")
    now = datetime.now(UTC)
    period = _period(since, until, zone, now)
    with open_database(read_only=True).reading() as connection:
        rows, total = report(connection, period, zone, now=now, room=room)
    if json_:
        of = {"since": period.begin, "until": period.end, "time_zone": str(zone), "now": now}
        click.echo(as_json(of | {"days": rows, "total": total}))
    elif csv_:
        click.echo(as_csv(COLUMNS, [*rows, total]), nl=False)
    else:
        begin, end = (f"{one.astimezone(zone):%Y-%m-%d %H:%M:%S}" for one in period)
        click.echo(f"{begin} to {end}, time zone {zone}")
        _draw(rows, total)


def _period(since: str | None, until: str | None, zone: tzinfo, now: datetime) -> Period:
    first = now.astimezone(zone).date() - timedelta(days=_DAYS - 1)
    begin = datetime.combine(first, time.min, zone) if since is None else age_or_time("--since", since, zone, now)
    end = now if until is None else age_or_time("--until", until, zone, now)
    try:
        period = Period(begin.astimezone(UTC), end.astimezone(UTC))
        if period.begin >= period.end:
            raise click.UsageError(f"--since is not before --until: {begin:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M}")
        if period.end - period.begin > timedelta(days=_MOST_DAYS):
            raise click.UsageError(f"--since and --until: {_MOST_DAYS} days are the most")
        days_of(period, zone)
    except OverflowError:
        raise click.UsageError("--since and --until: a calendar has no such days") from None
    return period


def _draw(rows: Sequence[Row], total: Row) -> None:
    console = terminal()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("day", "room"):
        table.add_column(name, no_wrap=True)
    for name in ("jobs", "connected", "out.", "down", "longest", "par.", "rep."):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("most played", no_wrap=True, overflow="ellipsis")
    for row in (*rows, total):
        room = "" if row is total else short_room(row, whole=not console.is_terminal)
        most = " ".join(str(row[name]) for name in PARAGRAPH if row[name] is not None)
        table.add_row(
            row["day"],
            room,
            str(row["jobs"]),
            duration(row["connected_seconds"]),
            str(row["outages"]),
            duration(row["down_seconds"]),
            duration(row["longest_outage_seconds"]),
            str(row["paragraphs"]),
            str(row["replies"]),
            Text(printable(f"{row['played']}x {most}") if row["played"] else ""),
            style="bold" if row is total else "",
        )
    console.print(table)
    console.print(Text("out.: outages, par.: paragraphs, rep.: replies", style="dim"))
