"""Commands that delete what is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import click
from rich.console import Console
from rich.progress import Progress

from receiver.cli.options import config_option, open_database, read_settings
from receiver.cli.times import age
from receiver.database import delete
from receiver.database.prune import Age, count_older, delete_older
from receiver.text import printable


def _read_age(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, timedelta]:
    found = age(value, "dh")  # without minutes, which would be taken for months
    if found is None:
        raise click.BadParameter("is not a number of days or hours, such as 90d or 12h")
    return value, found


@click.command()
@config_option
@click.option("--older-than", required=True, callback=_read_age, help="Such as 90d or 12h.")
@click.option("--dry-run", is_flag=True, help="Only say how much it would be.")
def prune(older_than: tuple[str, timedelta], *, dry_run: bool) -> None:
    """Delete old jobs with all their events, and quarantined deliveries, in batches.

    A job is old when its last event is; one that still runs is not. Safe beside a running receiver.
    """
    database = open_database()
    now = datetime.now(UTC)
    stale = now.timestamp() - read_settings().stream_stale_after
    old = Age(before=now - older_than[1], stale=datetime.fromtimestamp(max(stale, 0), UTC))
    counted = count_older(database, old)
    said = f"Would delete {_in_words(counted)}" if dry_run else _delete(counted, delete_older(database, old))
    click.echo(f"{said} older than {older_than[0]}.")


@click.command("delete")
@config_option
@click.argument("job")
@click.option("--dry-run", is_flag=True, help="Only say how much it would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_job(job: str, *, dry_run: bool, yes: bool) -> None:
    """Delete all that is stored of one JOB, named by its whole id.

    That is its events, its state, and quarantined deliveries that name it. Asks before it does so. Safe beside a
    running receiver, which may store more of the job afterwards.
    """
    database = open_database()
    stored = delete.count_job(database, job)
    if not any(stored.values()):
        raise click.ClickException(f"nothing is stored of a job with the id {printable(job)}: give the whole id")
    if dry_run:
        click.echo(f"Would delete {_in_words(stored)} of job {printable(job)}.")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask on: give --yes, or --dry-run first")
        click.confirm(f"Delete {_in_words(stored)} of job {printable(job)}?", abort=True)
    click.echo(f"{_delete(stored, delete.delete_job(database, job))} of job {printable(job)}.")
    click.echo(
        "A receiver offers what its journal still holds to the database again after an outage: do this again"
        f" {read_settings().journal_keep:g} seconds (journal_keep) after the job's last event."
    )


def _delete(counted: Mapping[str, int], batches: Iterable[tuple[str, int]]) -> str:
    """Delete in batches, and say how much it was; `counted` is how much it will be."""
    deleted = dict.fromkeys(counted, 0)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("Deleting", total=sum(counted.values()))
        for table, count in batches:
            deleted[table] += count
            progress.advance(bar, count)
    return f"Deleted {_in_words(deleted)}"


def _in_words(rows: Mapping[str, int]) -> str:
    """Numbers of rows by table, in words; without the platform's where there are none, as where it is never asked."""
    shown = ((table, count) for table, count in rows.items() if count or table != "platform_jobs")
    return ", ".join(f"{count} {'quarantined' if table == 'quarantine' else table}" for table, count in shown)
