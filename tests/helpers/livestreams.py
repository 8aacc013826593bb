"""What an operator may find at night: livestreams on air, down, ended and without an end, and rejected callbacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from receiver.protocol.signature import sign
from receiver.tools.sender import livestream
from tests.helpers.receiver import Process, running

_HOUR = 3600


class Night(NamedTuple):
    """The ids of the jobs."""

    on_air: str
    down: str
    ended: str
    stale: str


def send_night(receiver: Process, now: float) -> Night:
    """Send it all to a receiver, in order of time, as of `now` in POSIX seconds; the rejected ones last."""
    parts = {  # when each began, how long it lasts, and when it fell silent
        "on_air": (now - 1.2 * _HOUR, 1.5 * _HOUR, now),
        "down": (now - 0.25 * _HOUR, 0.6 * _HOUR, now),
        "ended": (now - 0.9 * _HOUR, 0.5 * _HOUR, now),
        "stale": (now - 20 * _HOUR, _HOUR, now - 19.2 * _HOUR),
    }
    streams = {name: livestream(duration) for name, (_, duration, _) in parts.items()}
    sent = [
        (parts[name][0] + after, body)
        for name, stream in streams.items()
        for after, body in stream.events
        if parts[name][0] + after <= parts[name][2]
    ]
    for at, body in sorted(sent):
        assert receiver.post(body, at=at).status == 200
    forged = urlsplit(sign(receiver.url, "another key than that which is registered", now).url)
    assert receiver.request("POST", f"{forged.path}?{forged.query}", b"{}").status == 401
    assert receiver.request("POST", "/callbacks/of-nobody", b"{}").status == 404
    return Night(**{name: stream.job_id for name, stream in streams.items()})


@contextmanager
def running_at_night(folder: Path) -> Iterator[tuple[Process, Night]]:
    """A receiver with the status page that has stored all of it just now."""
    with running(folder, RECEIVER_TIMESTAMP_TOLERANCE="90000", RECEIVER_STATUS_PAGE="true") as receiver:
        night = send_night(receiver, time.time())
        receiver.rows("SELECT 1")
        yield receiver, night
