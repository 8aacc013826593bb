"""Commands for what is stored."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

from receiver.cli.options import config_option, open_database, open_url, read_settings
from receiver.cli.terminal import terminal
from receiver.database.copy import copy, count_rows
from receiver.database.quarantine import retry as retry_quarantined
from receiver.journal.recovery import Readable, UnreadableError
from receiver.projector import recovery
from receiver.projector.store import Store
from receiver.projector.suspects import Suspects
from receiver.settings.database_url import database_url
from receiver.settings.parsers import InvalidValueError
from receiver.text import printable

_MOST = 2**31 - 1  # rows that are listed


def _read_source(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        url = make_url(database_url(value))
    except InvalidValueError as error:
        raise click.BadParameter(str(error)) from error
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise click.BadParameter(f"{url.database} is no file")
    return value


@click.command("copy")
@config_option
@click.option(
    "--from", "source_url", required=True, callback=_read_source, help="Its database_url, such as sqlite:///PATH"
)
def copy_database(source_url: str) -> None:
    """Copy all that another database holds into this one: events, quarantine, streams, what the platform said.

    Stores what is not there yet, so that it can be broken off and done again. Safe beside running receivers.
    """
    target, source = open_database(), open_url(source_url)
    source.check_schema()
    events = quarantined = 0
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("Copying", total=count_rows(source))
        for copied in copy(source, target):
            events += copied.events
            quarantined += copied.quarantined
            progress.advance(bar, copied.rows)
    click.echo(f"Copied {events} events and {quarantined} quarantined that were not there yet.")


@click.command()
@config_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def recover(file: Path) -> None:
    """Bring what can be read of FILE, a damaged or unused journal, into the database.

    FILE stays as it is. What is stored already stays once, so that it can be done again. Safe beside a running
    receiver, which does the same by itself with each journal that it has moved aside.
    """
    if file.resolve() == read_settings().journal.resolve():
        raise click.ClickException(f"{file} is the receiver's own journal: `receiver serve` stores what it holds")
    read = stored = 0
    try:
        source = Readable(file)
        for count, outcome in recovery.recover(file, source, Suspects(Store(open_database()))):
            read, stored = read + count, stored + outcome.new
    except UnreadableError as error:
        raise click.ClickException(printable(f"{file} cannot be read: {error}")) from error
    lost = f" Rows that cannot be read: {source.lost}." if source.lost else ""
    click.echo(f"Read {read} deliveries, of which {stored} were not there yet.{lost}")


@click.group()
def quarantine() -> None:
    """Look at, and try again, what came authentic and was not understood."""


@quarantine.command("list")
@config_option
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="How many.")
@click.option("--reason", help="Only those of this reason.")
def list_quarantine(limit: int, reason: str | None) -> None:
    """List the quarantine, the oldest first. The exact bytes are in the table's column `body`."""
    table = Table("id", "received (UTC)", "endpoint", "reason", "bytes", box=None)
    for row in open_database().quarantined(limit=limit, reason=reason):
        received = f"{row['received_at']:%Y-%m-%d %H:%M:%S}"
        # As Text, in which brackets are no markup.
        texts = (Text(printable(row[name])) for name in ("endpoint", "reason"))
        table.add_row(str(row["id"]), received, *texts, str(len(row["body"])))
    terminal().print(table if table.row_count else "The quarantine is empty.")


@quarantine.command()
@config_option
@click.option("--stale", is_flag=True, help="Also those signed too long ago, if it was our clock that was wrong.")
def retry(*, stale: bool) -> None:
    """Read the quarantine again, and move to the events what this version understands."""
    moved, left = retry_quarantined(open_database(), stale=stale)
    click.echo(f"{moved} moved to the events, {left} left in the quarantine.")
