"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from receiver import logs
from receiver.app import run, verifier
from receiver.protocol.events import EventError, EventType, StreamState, parse
from receiver.protocol.signature import AuthType, StaleSignatureError
from receiver.settings import DEFAULT_FILE, DEFAULT_URL, EndpointSettings, Settings, SettingsError, load, masked
from receiver.storage.bulk import Row
from receiver.storage.database import Database, RefusedError, problem_of
from receiver.storage.history import TIMELINE, UnknownJobError, find_job, job_history, latest_jobs
from receiver.storage.journal import JournalError
from receiver.storage.migration import SchemaError
from receiver.storage.projector import event_columns
from receiver.storage.schema import live_jobs
from receiver.storage.transfer import copy
from receiver.tools import doctor as diagnosis
from receiver.tools.export import as_csv, as_json
from receiver.tools.sender import Answer, Sender, SendError, body_of, livestream, send_load
from receiver.tools.setup import write_configuration
from receiver.tools.timeline import draw_job, draw_jobs
from receiver.web.listeners import ListenError

_KNOWN_ERRORS = (SettingsError, JournalError, ListenError, SchemaError, SendError)


class _Group(click.Group):
    """Says what is wrong in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's signature)
        try:
            return super().invoke(ctx)
        except _KNOWN_ERRORS as error:
            raise click.ClickException(str(error)) from error
        except (SQLAlchemyError, RefusedError) as error:
            raise click.ClickException(f"database_url: {problem_of(error)}: is it right, and the server up?") from error


def _remember(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta["config"] = value


def _read_age(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, timedelta]:
    match = re.fullmatch(r"([0-9]{1,5})([dh])", value)
    if match is None:
        raise click.BadParameter("is not a number of days or hours, such as 90d or 12h")
    return value, timedelta(**{{"d": "days", "h": "hours"}[match[2]]: int(match[1])})


def _read_source(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        load(None, {"RECEIVER_CONFIG": os.devnull, "RECEIVER_KEY": "checked", "RECEIVER_DATABASE_URL": value or "-"})
    except SettingsError as error:
        raise click.BadParameter(str(error).removeprefix("database_url: ")) from error
    url = make_url(value)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise click.BadParameter(f"{url.database} is no file")
    return value


def _read_since(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})([dhm])", value)
    try:
        if match is not None:
            unit = {"d": "days", "h": "hours", "m": "minutes"}[match[2]]
            return datetime.now(UTC) - timedelta(**{unit: int(match[1])})
        time = datetime.fromisoformat(value)
        return (time.replace(tzinfo=UTC) if time.tzinfo is None else time).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter("is neither an age, such as 12h, 7d or 30m, nor a time, such as 2026-03-01") from None


_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_remember,
    expose_value=False,
    help=f"The TOML file.  [default: RECEIVER_CONFIG, or {DEFAULT_FILE} in this folder]",
)
_endpoint_option = click.option("--endpoint", "name", help="Which of several [[endpoints]] to use.")
_to_option = click.option("--to", metavar="URL", help="Where to connect, if not to the registered URL's own host.")
_trust_option = click.option(
    "--trust", type=click.Path(path_type=Path, exists=True), help="A PEM file to trust.  [default: tls_certificate]"
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@_config_option
@click.version_option(version("metastudio-callback-receiver"), prog_name="receiver")
def main() -> None:
    """Receive Huawei Cloud MetaStudio's live event callbacks, and keep them in a SQL database.

    Begin with `receiver init` and `receiver serve`, then try `receiver simulate` in a second terminal.
    """


@main.command()
@_config_option
@click.option("--url", default=DEFAULT_URL, help="The URL to register with MetaStudio.", show_default=True)
@click.option("--auth-type", type=click.Choice([AuthType.MSS_A, AuthType.MSS_A_HEAD]), default=AuthType.MSS_A)
def init(url: str, auth_type: str) -> None:
    """Write receiver.toml with a random key, and a self-signed certificate for localhost.

    Nothing is ever overwritten.
    """
    path: Path = click.get_current_context().meta.get("config", Path(DEFAULT_FILE))
    # As the settings will read them: a URL that cannot be registered is refused before anything is written.
    load(None, {"RECEIVER_CONFIG": os.devnull, "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": url, "RECEIVER_KEY": "checked"})
    try:
        write_configuration(path, url, auth_type)
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} exists, and is not overwritten: move it away first") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror}") from error
    click.echo(f"Wrote {path} with a new key. Next: receiver serve")


@main.command()
@_config_option
def serve() -> None:
    """Receive callbacks until SIGTERM or Ctrl-C.

    Answers 200 only for what is on disk, and keeps doing so while the database is away.
    """
    settings = _settings()
    os.umask(0o077)  # what it writes holds stream keys
    logs.set_up()
    run(settings, lambda: _announce(settings))


@main.command()
@_config_option
def migrate() -> None:
    """Bring the database's schema to this version's.

    `serve` does so itself for SQLite; a PostgreSQL database, which others may share, is migrated only by this.
    """
    before, after = _database().migrate()
    click.echo(f"The schema is at revision {after}" + (" already." if before == after else f"; it was {before}."))


@main.command("config")
@_config_option
@_endpoint_option
@click.option("--registration", is_flag=True, help="Print the JSON to register with MetaStudio, with the key in it.")
def show_config(name: str | None, *, registration: bool) -> None:
    """Show the settings in force, secrets masked."""
    settings = _settings()
    if not registration:
        shown = masked(settings)
        for endpoint in shown.pop("endpoints"):
            name = endpoint.pop("name")
            shown |= {f"endpoints.{name}.{key}": value for key, value in endpoint.items()}
        click.echo("\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in shown.items()))
        return
    endpoint = _endpoint(settings, name)
    registered: dict[str, Any] = {
        "live_event_type_callback_url": endpoint.live_event_type_callback_url,
        "auth_type": endpoint.auth_type,
        "callback_event_type": list(EventType),
    }
    if endpoint.key:
        registered["key"] = endpoint.key
    click.echo(json.dumps({"live_event_callback_config": registered}, indent=2, ensure_ascii=False))


@main.command()
@_config_option
@_endpoint_option
@_to_option
@_trust_option
@click.option("--body", type=click.File("rb"), help="The exact body to post, from a file, or - for standard input.")
@click.option("--at", type=float, help="The time to sign, in POSIX seconds.  [default: now]")
def send(name: str | None, to: str | None, trust: Path | None, body: Any, at: float | None) -> None:  # noqa: ANN401
    """Sign one event as MetaStudio does, and post it.

    Without --body it is an RTMP_STREAM_STATE_CHANGE of a made-up job.
    """
    settings = _settings()
    content = body.read() if body else body_of(EventType.RTMP_STREAM_STATE_CHANGE, _MADE_UP)
    with closing(_sender(settings, name, to, trust)) as sender:
        answer = sender.post(content, time.time() if at is None else at)
    click.echo(f"{answer.status} {answer.body} ({answer.seconds * 1000:.1f} ms)")
    sys.exit(0 if answer.status == 200 else 1)  # noqa: PLR2004 (OK)


@main.command()
@_config_option
@_endpoint_option
@_to_option
@_trust_option
@click.option("--events", type=click.IntRange(1), help="Send a load of this many distinct events instead.")
@click.option("--rate", type=click.FloatRange(0), default=0, help="Of the load: events a second; 0 is no limit.")
@click.option("--connections", type=click.IntRange(1, 256), default=8, show_default=True, help="Of the load.")
def simulate(  # noqa: PLR0913 (the command's options)
    *, name: str | None, to: str | None, trust: Path | None, events: int | None, rate: float, connections: int
) -> None:
    """Send a whole simulated livestream, or a load, and show what arrived.

    The livestream is of the last four minutes: its script, a connection lost and found again, replies, the end.
    """
    settings = _settings()
    answers: list[Answer] = []
    if events:
        send_load(
            lambda: _sender(settings, name, to, trust),
            events=events,
            rate=rate,
            connections=connections,
            on_answer=answers.append,
        )
        _show_answers(answers)
    else:
        duration = min(240.0, 0.8 * _endpoint(settings, name).timestamp_tolerance)
        stream = livestream(duration)
        began = time.time() - duration
        with closing(_sender(settings, name, to, trust)) as sender:
            answers = [sender.post(body, began + at) for at, body in stream.events]
        _show_answers(answers)
        _show_job(_database(settings), stream.job_id, len({(int(began + at), body) for at, body in stream.events}))
    sys.exit(0 if all(answer.status == 200 for answer in answers) else 1)  # noqa: PLR2004 (OK)


@main.command()
@_config_option
@click.argument("url", default="")
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the request.")
@click.option("--body", type=click.File("rb"), help="The body, from a file, or - for standard input.")
@click.option("--at", type=float, help="When it came, in POSIX seconds.  [default: now]")
def doctor(url: str, headers: tuple[str, ...], body: Any, at: float | None) -> None:  # noqa: ANN401
    """Say why a captured callback is accepted or rejected.

    URL is what was requested, with its query: whole, or from the path on (put it in quotes). For MSS_A_HEAD give both
    headers with --header. If the signature is wrong, it is tried with other forms, keys, hosts and paths.
    """
    if not url and not headers and not body:
        raise click.UsageError("give a captured URL, or --header, or --body")
    accepted, lines = True, list[str]()
    if url or headers:
        captured = diagnosis.Captured(url, tuple((line.partition(":")[0], line.partition(":")[2]) for line in headers))
        accepted, lines = diagnosis.examine(
            _settings().endpoints, verifier, captured, time.time() if at is None else at
        )
    if body:
        lines += diagnosis.describe_body(body.read())
    click.echo("\n".join(lines))
    sys.exit(0 if accepted else 1)


@main.command()
@_config_option
@click.argument("job", default="")
@click.option("--room", default="", help="Only jobs of this room.")
@click.option("--since", callback=_read_since, help="An age, such as 12h or 7d, or a time in UTC, such as 2026-03-01.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV. A text that begins like a formula gets a ' before it.")
def history(job: str, room: str, since: datetime | None, *, json_: bool, csv_: bool) -> None:
    """Show the latest jobs, or all that happened in one JOB.

    The beginning of an id is enough. Without --since it is the 20 latest jobs, or the whole of the one. All times
    are UTC.
    """
    if json_ and csv_:
        raise click.UsageError("--json or --csv, not both")
    database = _database()
    database.check_schema()
    with database.reading() as connection:
        if not job:
            jobs = latest_jobs(connection, room=room, since=since)
            _print_jobs(jobs, json_=json_, csv_=csv_)
            return
        try:
            found = job_history(connection, find_job(connection, job, room=room), since=since)
        except UnknownJobError as error:
            raise click.ClickException(diagnosis.printable(error)) from error
    if json_:
        click.echo(as_json(found._asdict()))
    elif csv_:
        click.echo(as_csv(TIMELINE, found.timeline), nl=False)
    else:
        draw_job(_console(), found.live_job, found.stream_sessions, found.timeline, datetime.now(UTC))


@main.command()
@_config_option
@click.option("--older-than", "age", required=True, callback=_read_age, help="Such as 90d or 12h.")
@click.option("--dry-run", is_flag=True, help="Only say how much it would be.")
def prune(age: tuple[str, timedelta], *, dry_run: bool) -> None:
    """Delete old events, quarantined deliveries and ended streams, in batches.

    Safe beside a running receiver.
    """
    database = _database()
    before = datetime.now(UTC) - age[1]
    doomed = database.count_older(before)
    deleted = Counter(doomed if dry_run else {})
    if not dry_run:
        with Progress(transient=True, console=Console(stderr=True)) as progress:
            bar = progress.add_task("Deleting", total=sum(doomed.values()))
            for table, count in database.prune(before):
                deleted[table] += count
                progress.advance(bar, count)
    counts = f"{deleted['events']} events, {deleted['quarantine']} quarantined, {deleted['streams']} streams"
    click.echo(f"{'Would delete' if dry_run else 'Deleted'} {counts} older than {age[0]}.")


@main.command("copy")
@_config_option
@click.option(
    "--from", "source_url", required=True, callback=_read_source, help="Its database_url, such as sqlite:///PATH"
)
def copy_database(source_url: str) -> None:
    """Copy all events, quarantine and streams of another database into this one.

    Stores what is not there yet, so that it can be broken off and done again. Safe beside running receivers.
    """
    target, source = _database(), _opened(source_url)
    for database in (source, target):
        database.check_schema()
    events = quarantined = 0
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("Copying", total=sum(source.sizes().values()))
        for copied in copy(source, target):
            events += copied.events
            quarantined += copied.quarantined
            progress.advance(bar, copied.rows)
    click.echo(f"Copied {events} events and {quarantined} quarantined that were not there yet.")


@main.group()
def quarantine() -> None:
    """Look at, and try again, what came authentic and was not understood."""


@quarantine.command("list")
@_config_option
@click.option("--limit", default=50, show_default=True)
@click.option("--reason", help="Only those of this reason.")
def list_quarantine(limit: int, reason: str | None) -> None:
    """List the quarantine, the oldest first. The exact bytes are in the table's column `body`."""
    table = Table("id", "received (UTC)", "endpoint", "reason", "bytes", box=None)
    for row in _database().quarantined(limit=limit, reason=reason):
        received = f"{row['received_at']:%Y-%m-%d %H:%M:%S}"
        table.add_row(str(row["id"]), received, row["endpoint"], row["reason"], str(len(row["body"])))
    Console().print(table if table.row_count else "The quarantine is empty.")


@quarantine.command()
@_config_option
@click.option("--stale", is_flag=True, help="Also those signed too long ago, if it was our clock that was wrong.")
def retry(*, stale: bool) -> None:
    """Read the quarantine again, and move to the events what this version understands."""
    database = _database()
    outcomes = Counter(_retry(database, row, stale=stale) for row in _pages(database))
    click.echo(f"{outcomes['moved']} moved to the events, {outcomes['left']} left in the quarantine.")


def _print_jobs(jobs: list[Row], *, json_: bool, csv_: bool) -> None:
    if json_:
        click.echo(as_json(jobs))
    elif csv_:
        click.echo(as_csv(live_jobs.c.keys(), jobs), nl=False)
    elif jobs:
        draw_jobs(_console(), jobs)
    else:
        click.echo("There are no such jobs.")


def _console() -> Console:
    """The terminal; where it is none, one so wide that nothing is cut off."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_NO_TERMINAL)


_NO_TERMINAL = 10_000
_MADE_UP = {
    "room_id": "room-of-receiver-send",
    "job_id": "job-of-receiver-send",
    "output_url": "rtmp://push.example.com/live/test",
    "stream_key": "made-up",
    "state": StreamState.CONNECTED,
}


def _retry(database: Database, row: Row, *, stale: bool) -> str:
    if row["reason"] == StaleSignatureError.reason and not stale:
        return "left"
    try:
        columns = event_columns(parse(row["body"]), row["body"])
    except EventError:
        return "left"
    kept = {name: row[name] for name in ("endpoint", "sent_at", "received_at", "digest")}
    try:
        database.release(row["id"], kept | columns)
    except RefusedError:
        return "left"
    return "moved"


def _pages(database: Database) -> Iterator[Row]:
    last = 0
    while rows := database.quarantined(limit=100, after=last):
        yield from rows
        last = rows[-1]["id"]


def _settings() -> Settings:
    return load(click.get_current_context().meta.get("config"), os.environ)


def _database(settings: Settings | None = None) -> Database:
    return _opened((settings or _settings()).database_url)


def _opened(url: str) -> Database:
    database = Database(url)
    click.get_current_context().call_on_close(database.close)
    return database


def _endpoint(settings: Settings, name: str | None) -> EndpointSettings:
    found = [one for one in settings.endpoints if name in (None, one.name)]
    if len(found) != 1:
        names = ", ".join(one.name for one in settings.endpoints)
        raise click.UsageError(f"--endpoint: name one of {names}")
    return found[0]


def _sender(settings: Settings, name: str | None, to: str | None, trust: Path | None) -> Sender:
    return Sender(_endpoint(settings, name), to=to, trust=trust or settings.tls_certificate)


def _announce(settings: Settings) -> None:
    scheme = "https" if settings.tls_certificate else "http"
    host, port = settings.operations_listen
    lines = [f"Receiving on {scheme}://{settings.listen[0]}:{settings.listen[1]}, until Ctrl-C."]
    if not settings.tls_certificate:
        lines.append("  This is plain HTTP: MetaStudio needs HTTPS, so put a proxy in front that ends TLS.")
    lines += [f"  register      {one.public_url} with auth_type {one.auth_type}" for one in settings.endpoints]
    lines += [
        "  key and JSON  receiver config --registration",
        f"  metrics       http://{host}:{port}/metrics",
        f"  database      {masked(settings)['database_url']}",
        "  next          receiver simulate (or make demo) in a second terminal",
    ]
    click.echo("\n".join(lines))


def _show_answers(answers: list[Answer]) -> None:
    for (status, body), count in Counter((answer.status, answer.body) for answer in answers).items():
        click.echo(f"{count} answered {status} {body}")
    times = sorted(answer.seconds for answer in answers)
    click.echo(f"median {1000 * times[len(times) // 2]:.1f} ms, slowest {1000 * times[-1]:.1f} ms")


def _show_job(database: Database, job_id: str, expected: int) -> None:
    deadline = time.monotonic() + 15
    while len(rows := database.job(job_id)) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    table = Table(
        "time (UTC)", "event", "what", title=f"{len(rows)} events of job {job_id}", box=None, title_justify="left"
    )
    for row in rows:
        table.add_row(f"{row['sent_at']:%H:%M:%S}", row["event_type"], _tell(row))
    Console().print(table)


def _tell(row: Row) -> str:
    if row["event_type"] == EventType.SHOOT_SCRIPT_SWITCH:
        what = f"{row['scene_script_name']} · {row['shoot_script_sequence_no']} {row['shoot_script_title']}"
        return diagnosis.printable(what)
    return diagnosis.printable(row["state"] or f"reply {row['reply_id']}")
