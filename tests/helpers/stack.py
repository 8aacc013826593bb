"""What an operator has: a receiver, PostgreSQL with the read-only role, Prometheus; and three livestreams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, create_engine, insert, make_url, text

from receiver.database.schema import platform_jobs
from receiver.protocol.events import EventType, StreamState
from receiver.protocol.signature import sign
from receiver.tools.sender import body_of
from tests.helpers.database import sql
from tests.helpers.postgres import new_database
from tests.helpers.prometheus import Prometheus, scraping
from tests.helpers.receiver import Process, wait_until

READER = Path(__file__).parents[2] / "deploy/postgres/reader.sql"
PASSWORD = "a 'quoted' password"
SIMULATED = 29  # events
REJECTED = 6
WRONG_KEY = "another key than the receiver's"


class Live(NamedTuple):
    """A job that is still running: its ids, and the states it went through as (seconds ago, state)."""

    room_id: str
    job_id: str
    states: tuple[tuple[int, StreamState], ...]


UP = Live("room 1", "job-up", ((200, StreamState.CONNECTING), (198, StreamState.CONNECTED)))
DOWN = Live(
    "room 1",
    "job-down",
    (
        (190, StreamState.CONNECTED),
        (150, StreamState.RECONNECTING),
        (140, StreamState.CONNECTED),
        (100, StreamState.DISCONNECTED),
        (95, StreamState.RECONNECTING),
    ),
)
ROOM_NAME = "夏日直播间"  # of the room of both, as the platform said last; it had another one before
STORED = SIMULATED + sum(len(live.states) + 1 for live in (UP, DOWN)) + 1  # their states, and their paragraphs
PRODUCT = {"live_id": "live", "product_id": "42", "product_title": "春季新茶"}
REPEATED = 2
QUARANTINED = 1
ACCEPTED = STORED + REPEATED + QUARANTINED


class Stack(NamedTuple):
    """Everything that runs.

    `ended_job` is the simulated livestream, `began_at` when the sending began, `seen_at` when Prometheus had seen it.
    """

    receiver: Process
    prometheus: Prometheus
    owner: URL
    reader: URL
    ended_job: str
    began_at: float
    seen_at: float

    def rows(self, statement: str, *, owner: bool = False) -> list[dict[str, Any]]:
        """What the database answers to the read-only role, or to the owner."""
        engine = create_engine(self.owner if owner else self.reader)
        try:
            with engine.begin() as connection:
                return [dict(row) for row in connection.exec_driver_sql(statement).mappings()]
        finally:
            engine.dispose()

    def receiver_metrics(self) -> set[str]:
        """The names of all series that the receiver exports."""
        return {f"metastudio_{name}" for name, _ in self.receiver.metrics()}


def add_reader(owner: URL) -> None:
    """Run reader.sql as it is told there."""
    url = owner.set(drivername="postgresql").render_as_string(hide_password=False)
    environ = os.environ | {"METASTUDIO_READER_PASSWORD": PASSWORD}
    subprocess.run(["psql", "--quiet", "--no-psqlrc", "--file", READER, url], env=environ, check=True)


@contextmanager
def stack(folder: Path, server: URL) -> Iterator[Stack]:
    """All of it, after the livestreams, and when Prometheus has seen what they left."""
    with ExitStack() as ending:
        url = ending.enter_context(new_database(server))
        receiver = Process(folder, RECEIVER_DATABASE_URL=url)
        # First, because it looks at its targets only some seconds after it has started.
        prometheus = ending.enter_context(scraping(folder / "prometheus", receiver.operations_port))
        _run("migrate", receiver)
        owner = make_url(url)
        add_reader(owner)
        ending.callback(_drop_reader, owner)
        receiver.start()
        ending.callback(receiver.stop)
        # A rate needs a scrape from before, and so does a change of streams.
        wait_until(lambda: prometheus.value("sum(metastudio_callbacks_total)") == 0, "a first scrape")
        wait_until(lambda: prometheus.value("job:metastudio_streams_down:sum") == 0, "the streams before")
        began_at = time.time()
        ended_job = _simulate(receiver)
        _send(receiver, began_at)
        _name_the_room(url)
        wait_until(lambda: _is_seen(prometheus), "a scrape of all that was sent")
        reader = owner.set(username="metastudio_reader", password=PASSWORD)
        yield Stack(receiver, prometheus, owner, reader, ended_job, began_at, seen_at=time.time())


def _run(command: str, receiver: Process) -> str:
    """What a command of the receiver says, with the receiver's settings."""
    words = [sys.executable, "-m", "receiver", command]
    environ = os.environ | receiver.environ
    done = subprocess.run(words, cwd=receiver.folder, env=environ, check=True, capture_output=True, text=True)
    return done.stdout


def _simulate(receiver: Process) -> str:
    output = _run("simulate", receiver)
    found = re.search(rf"^{SIMULATED} events of job (\w+)", output, flags=re.MULTILINE)
    assert found is not None, output
    return found[1]


def _send(receiver: Process, now: float) -> None:
    """The live jobs, the first event of each twice; a body that is not understood; callbacks with a wrong key."""
    for live in (UP, DOWN):
        ids = {"room_id": live.room_id, "job_id": live.job_id}
        bodies = [
            (ago, body_of(EventType.RTMP_STREAM_STATE_CHANGE, {"output_url": "rtmp://x/1", "state": state} | ids))
            for ago, state in live.states
        ]
        fields = {"scene_script_name": "商品1", "shoot_script_sequence_no": "1", "shoot_script_title": "段落1"}
        bodies.append((live.states[-1][0] - 1, body_of(EventType.SHOOT_SCRIPT_SWITCH, fields | ids)))
        if live is UP:  # for a minute it played what is of a product
            bodies[-1] = (197, body_of(EventType.SHOOT_SCRIPT_SWITCH, fields | ids | PRODUCT))
            bodies.append((137, body_of(EventType.SHOOT_SCRIPT_SWITCH, fields | ids | {"shoot_script_title": "段落2"})))
        for ago, body in bodies:
            assert receiver.post(body, at=now - ago).status == 200
        assert receiver.post(bodies[0][1], at=now - bodies[0][0]).status == 200
    assert receiver.post(b"not JSON").status == 200
    for _ in range(REJECTED):
        query = sign(receiver.url, WRONG_KEY, time.time()).url.partition("?")[2]
        assert receiver.request("POST", f"/callbacks/metastudio?{query}", b"{}").status == 401


def _name_the_room(url: str) -> None:
    """What `receiver reconcile` keeps of the live jobs."""
    seconds = {"春日直播间": 2, ROOM_NAME: 1}
    for live, (name, ago) in zip((DOWN, UP), seconds.items(), strict=True):
        checked_at = datetime.now(UTC) - timedelta(seconds=ago)
        ids = {"room_id": live.room_id, "job_id": live.job_id}
        found = {"finding": "silent" if live is DOWN else None, "checked_at": checked_at}
        sql(url, insert(platform_jobs).values(ids | found | {"room_name": name}))


def _is_seen(prometheus: Prometheus) -> bool:
    """Whether the last sent is seen, twice for a rate; and the streams, which are counted every few seconds."""
    seen = {
        "sum(metastudio_callbacks_total)": ACCEPTED + REJECTED,
        "sum(metastudio_events_total)": ACCEPTED,
        'job_state:metastudio_streams:max{state="RECONNECTING"}': 1,
        'job_state:metastudio_streams:max{state="CONNECTED"}': 1,
        'job_state:metastudio_streams:max{state="END"}': 1,
        'count(job_endpoint_reason:metastudio_callbacks_rejected:increase10m{reason="wrong"} > 0)': 1,
        'count(ALERTS{alertname="MetaStudioCallbacksRejected",alertstate="firing"})': 1,
        'count(ALERTS{alertname="MetaStudioQuarantineGrowing",alertstate="firing"})': 1,
        'count(ALERTS{alertname="MetaStudioStreamNotRecovered"})': 1,
    }
    return all(prometheus.value(expression) == value for expression, value in seen.items())


def _drop_reader(owner: URL) -> None:
    engine = create_engine(owner)
    try:
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY metastudio_reader"))
            connection.execute(text("DROP ROLE metastudio_reader"))
    finally:
        engine.dispose()
