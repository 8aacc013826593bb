"""The command `history`: the latest jobs, or all that happened in one."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain

import click
from sqlalchemy.exc import SQLAlchemyError

from receiver.cli.export import as_csv, as_json
from receiver.cli.options import config_option, open_database
from receiver.cli.terminal import terminal
from receiver.cli.timeline import draw_event, draw_job, draw_jobs
from receiver.cli.times import age_or_time
from receiver.database.database import Database
from receiver.database.errors import problem_of
from receiver.database.follow import SHOWN, Follower
from receiver.database.history import JOBS, TIMELINE, find_job, job_history, latest_jobs
from receiver.database.insert import Row
from receiver.text import printable

_PAUSE = 1.0  # seconds between two looks at the database


def _read_since(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    return None if value is None else age_or_time("--since", value, UTC, datetime.now(UTC))


@click.command()
@config_option
@click.argument("job", default="")
@click.option("--room", default="", help="Only jobs of this room.")
@click.option("--since", callback=_read_since, help="An age, such as 12h or 7d, or a time in UTC, such as 2026-03-01.")
@click.option("--follow", is_flag=True, help="Print what is stored from now on, a line an event, until Ctrl-C.")
@click.option("--json", "json_", is_flag=True, help="Print JSON; with --follow a line an event.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV. A text that begins like a formula gets a ' before it.")
def history(  # noqa: PLR0913 (the command's options)
    job: str, room: str, since: datetime | None, *, follow: bool, json_: bool, csv_: bool
) -> None:
    """Show the latest jobs, or all that happened in one JOB.

    The beginning of an id is enough. Without --since it is the 20 latest jobs, or the whole of the one. All times
    are UTC.
    """
    if json_ and csv_:
        raise click.UsageError("--json or --csv, not both")
    if follow and (csv_ or since is not None or room):
        raise click.UsageError("--follow goes with JOB and --json only")
    database = open_database(read_only=not follow)
    if follow:
        with database.reading() as connection:
            job_id = find_job(connection, job) if job else None
        _follow(database, job_id, json_=json_)
        return
    with database.reading() as connection:
        if not job:
            _print_jobs(latest_jobs(connection, room=room, since=since), json_=json_, csv_=csv_)
            return
        found = job_history(connection, find_job(connection, job, room=room), since=since)
    if json_:
        click.echo(as_json(found._asdict()))
    elif csv_:
        click.echo(as_csv(TIMELINE, found.timeline), nl=False)
    else:
        draw_job(terminal(), found, datetime.now(UTC))


def _follow(database: Database, job_id: str | None, *, json_: bool) -> None:
    console = terminal()
    with suppress(KeyboardInterrupt):  # is how it ends
        follower, is_down = Follower(database, job_id=job_id), False
        click.echo("Showing what is stored from now on, until Ctrl-C.", err=True)
        while True:
            time.sleep(_PAUSE)
            try:
                for row in chain.from_iterable(follower.new()):
                    if json_:
                        click.echo(as_json({name: row[name] for name in SHOWN}, indent=None))
                    else:
                        draw_event(console, row, with_job=job_id is None)
            except SQLAlchemyError as error:
                if not is_down:
                    click.echo(f"The database does not answer, trying again: {printable(problem_of(error))}", err=True)
                is_down = True
            else:
                if is_down:
                    click.echo("The database answers again.", err=True)
                is_down = False


def show_job(database: Database, job_id: str) -> None:
    """Print all that happened in a job, as `receiver history` does."""
    with database.reading() as connection:
        draw_job(terminal(), job_history(connection, job_id), datetime.now(UTC))


def _print_jobs(jobs: list[Row], *, json_: bool, csv_: bool) -> None:
    if json_:
        click.echo(as_json(jobs))
    elif csv_:
        click.echo(as_csv(JOBS, jobs), nl=False)
    elif jobs:
        draw_jobs(terminal(), jobs, datetime.now(UTC))
    else:
        click.echo("There are no such jobs.")
