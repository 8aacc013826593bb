"""The command that says why a callback is rejected."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from receiver import rejections
from receiver.cli.options import config_option, open_database, read_settings
from receiver.cli.times import read_time
from receiver.settings.declaration import shown
from receiver.text import printable
from receiver.tools import doctor as diagnosis
from receiver.tools.captured import Captured


@click.command()
@config_option
@click.argument("url", default="")
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the request.")
@click.option("--body", type=click.File("rb"), help="The body, from a file, or - for standard input.")
@click.option("--at", callback=read_time, help="When it came: ISO 8601, or POSIX seconds.  [default: now]")
@click.option(
    "--last",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    metavar="[N]",
    help="Of the last N requests that the receiver rejected; without N, of the last one.",
)
@click.option("--database", is_flag=True, help="Say whether the database can be used, instead.")
def doctor(  # noqa: PLR0913 (the command's options)
    *,
    url: str,
    headers: tuple[str, ...],
    body: Any,  # noqa: ANN401
    at: float | None,
    last: int | None,
    database: bool,
) -> None:
    """Say why a captured callback is accepted or rejected.

    URL is what was requested, with its query: whole, or from the path on (put it in quotes). For MSS_A_HEAD give both
    headers with --header. If the signature is wrong, it is tried with other forms, keys, hosts and paths. With --last
    nothing has to be captured: it is about what the running receiver has rejected.
    """
    if database:
        if not open_database().may_store():
            raise click.ClickException(
                "database_url: the role may not store events: give that of the tables' owner, or the one that"
                " deploy/postgres/roles.sql makes for it"
            )
        click.echo(f"the database can be used: {shown(read_settings())['database_url']}")
        return
    if last is not None:
        if url or headers or body:
            raise click.UsageError("--last is about what the receiver has seen: leave out URL, --header and --body")
        _explain_last(last)
        return
    if not url and not headers and not body:
        raise click.UsageError("give a captured URL, or --header, or --body, or --last")
    accepted, lines = True, list[str]()
    if url or headers:
        captured = Captured(url, tuple((line.partition(":")[0], line.partition(":")[2]) for line in headers))
        accepted, lines = diagnosis.examine(read_settings().endpoints, captured, time.time() if at is None else at)
    if body:
        lines += diagnosis.describe_body(body.read())
    click.echo("\n".join(map(printable, lines)))
    sys.exit(0 if accepted else 1)


def _explain_last(count: int) -> None:
    settings = read_settings()
    file = rejections.rejections_file(settings.journal)
    try:
        found = rejections.read(file)[:count]
    except OSError as error:
        raise click.ClickException(f"{error}: run this as the receiver's user") from error
    if not found:
        raise click.ClickException(f"no rejected request is noted in {file}: is this the receiver's own `journal`?")
    for number, rejection in enumerate(found):
        if number:
            click.echo()
        for line in diagnosis.explain(rejection, settings.endpoints, settings.max_body_bytes):
            click.echo(printable(line))
