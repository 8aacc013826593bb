"""Commands that send callbacks."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from sqlalchemy import select

from receiver.cli.history import show_job
from receiver.cli.options import choose_endpoint, config_option, endpoint_option, open_url, read_settings
from receiver.cli.times import read_time
from receiver.database.database import Database, of_job
from receiver.database.insert import Row
from receiver.database.migration import SchemaError
from receiver.database.schema import events
from receiver.protocol.events import EventType, StreamState
from receiver.settings.settings import Settings
from receiver.text import printable
from receiver.tools.sender import Answer, Sender, body_of, livestream, send_load

_MADE_UP = {
    "room_id": "room-of-receiver-send",
    "job_id": "job-of-receiver-send",
    "output_url": "rtmp://push.example.com/live/test",
    "stream_key": "made-up",
    "state": StreamState.CONNECTED,
}
_LIVESTREAM = 240.0  # seconds; shorter where these would be too old for the endpoint

_to_option = click.option("--to", metavar="URL", help="Where to connect, if not to the registered URL's own host.")
_trust_option = click.option(
    "--trust", type=click.Path(path_type=Path, exists=True), help="A PEM file to trust.  [default: tls_certificate]"
)


@click.command()
@config_option
@endpoint_option
@_to_option
@_trust_option
@click.option("--body", type=click.File("rb"), help="The exact body to post, from a file, or - for standard input.")
@click.option("--at", callback=read_time, help="The time to sign: ISO 8601, or POSIX seconds.  [default: now]")
def send(name: str | None, to: str | None, trust: Path | None, body: Any, at: float | None) -> None:  # noqa: ANN401
    """Sign one event as MetaStudio does, and post it.

    Without --body it is an RTMP_STREAM_STATE_CHANGE of a made-up job.
    """
    settings = read_settings()
    content = body.read() if body else body_of(EventType.RTMP_STREAM_STATE_CHANGE, _MADE_UP)
    with closing(_sender(settings, name, to, trust)) as sender:
        answer = sender.post(content, time.time() if at is None else at)
    click.echo(f"{answer.status} {printable(answer.body)} ({answer.seconds * 1000:.1f} ms)")
    sys.exit(0 if answer.status == HTTPStatus.OK else 1)


@click.command()
@config_option
@endpoint_option
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
    for option in ("rate", "connections"):
        source = click.get_current_context().get_parameter_source(option)
        if not events and source is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{option}: is of a load: give --events too")
    settings = read_settings()
    new_sender = partial(_sender, settings, name, to, trust)
    if events:
        answers = send_load(new_sender, events=events, rate=rate, connections=connections)
        _show_answers(answers)
    else:
        duration = min(_LIVESTREAM, 0.8 * choose_endpoint(settings, name).timestamp_tolerance)
        answers = _send_livestream(new_sender, open_url(settings.database_url), duration)
    sys.exit(0 if all(answer.status == HTTPStatus.OK for answer in answers) else 1)


def _send_livestream(new_sender: Callable[[], Sender], database: Database, duration: float) -> list[Answer]:
    stream, began = livestream(duration), time.time() - duration
    with closing(new_sender()) as sender:
        answers = [sender.post(body, began + at) for at, body in stream.events]
    _show_answers(answers)
    _show_job(database, stream.job_id, len({(int(began + at), body) for at, body in stream.events}))
    return answers


def _sender(settings: Settings, name: str | None, to: str | None, trust: Path | None) -> Sender:
    return Sender(choose_endpoint(settings, name), to=to, trust=trust or settings.tls_certificate)


def _show_answers(answers: list[Answer]) -> None:
    for (status, body), count in Counter((answer.status, answer.body) for answer in answers).items():
        click.echo(f"{count} answered {status} {printable(body)}")
    times = sorted(answer.seconds for answer in answers)
    click.echo(f"median {1000 * times[len(times) // 2]:.1f} ms, slowest {1000 * times[-1]:.1f} ms")


def _show_job(database: Database, job_id: str, expected: int) -> None:
    deadline = time.monotonic() + 15
    while len(rows := _stored(database, job_id)) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    database.check_schema()
    click.echo(f"{len(rows)} events of job {job_id}")
    if rows:
        show_job(database, job_id)


def _stored(database: Database, job_id: str) -> list[Row]:
    """The events of a job; none while a receiver that has just started still creates the tables."""
    try:
        database.check_schema()
    except SchemaError:
        return []
    return database.read(select(events.c.id).where(of_job(job_id)))
