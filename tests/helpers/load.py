"""A bounded load on real receivers, which remembers what was acknowledged, and receivers that can be hurt."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit
from uuid import uuid4

from sqlalchemy import create_engine

from receiver.protocol.signature import sign
from tests.helpers.receiver import KEY, Answer, Process, wait_until

_STATES = ("CONNECTING", "CONNECTED", "DISCONNECTED", "RECONNECTING", "END")


class Event(NamedTuple):
    """What is posted: its id (which is in the body as room_id), the body, and the signed path and query."""

    identity: str
    body: bytes
    target: str


class Receiver(Process):
    """A receiver that need not come up, and that may run under another program, such as strace."""

    def __init__(self, folder: Path, *, tls: bool = True, under: Sequence[str] = (), **environ: str) -> None:
        super().__init__(folder, tls=tls, **environ)
        self.under = tuple(under)

    def spawn(self) -> Self:
        """Start, and wait for nothing."""
        # coverage keeps its data in SQLite too, and would meet the errors that strace gives to the receiver.
        hidden = "COVERAGE" if self.under else "\0"
        environ = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        with self._out.open("wb") as stdout, self.log_file.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*self.under, sys.executable, "-m", "receiver", "serve"],
                cwd=self.folder,
                env=environ | self.environ,
                stdout=stdout,
                stderr=stderr,
            )
        return self

    def start(self) -> Self:
        """Start, and wait until it says that it receives."""
        self.spawn()
        wait_until(lambda: self.serves() or not self.runs(), "the receiver's first words")
        assert self.runs(), self.log
        return self

    def serves(self) -> bool:
        """Whether it has said that it receives."""
        return b"  next  " in self._out.read_bytes()

    def runs(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def database_url(self) -> str:
        """Where its database is, for others than itself too."""
        return self.environ.get("RECEIVER_DATABASE_URL", f"sqlite:///{self.folder / 'var/receiver.db'}")

    @property
    def journal(self) -> Path:
        """Where its journal is."""
        return Path(self.environ.get("RECEIVER_JOURNAL", self.folder / "var/journal.db"))

    def migrate(self) -> None:
        """Bring its database's schema to this version's."""
        command = [sys.executable, "-m", "receiver", "migrate"]
        environ = os.environ | self.environ | {"RECEIVER_DATABASE_URL": self.database_url}
        subprocess.run(command, cwd=self.folder, env=environ, check=True, stdout=subprocess.DEVNULL)

    @property
    def _out(self) -> Path:
        return self.folder / "serve.out"


def strace(calls: str, injected: str, output: Path, *paths: Path) -> tuple[str, ...]:
    """A program to run a receiver under, which tampers with the system calls it makes, or with those on some files."""
    # -D: strace is a child of what it traces, and ends with it, not the other way round.
    options = ["-D", "-f", "--seccomp-bpf", "-o", str(output)]
    for path in paths:
        options += ["-P", str(path)]
    return ("strace", *options, "-e", f"trace={calls}", "-e", f"inject={injected}")


@contextmanager
def ended(*receivers: Receiver) -> Iterator[None]:
    """Kills those of the receivers that still run at the end of the block."""
    try:
        yield
    finally:
        for receiver in receivers:
            if receiver.runs():
                receiver.process.kill()
                receiver.process.wait()


@contextmanager
def held(url: str) -> Iterator[None]:
    """Keep the database from taking writes, so that the journal grows and a transaction hangs in the middle."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    sqlite = engine.dialect.name == "sqlite"
    try:
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA busy_timeout = 60000")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")
                connection.exec_driver_sql("LOCK TABLE events IN EXCLUSIVE MODE")
            try:
                yield
            finally:
                connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def awaits_lock(url: str) -> bool:
    """Whether a transaction is held up in a PostgreSQL database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return bool(connection.exec_driver_sql(query).scalar())
    finally:
        engine.dispose()


def event_body(run: str, number: int) -> bytes:
    """A distinct body of each type and of many sizes; every event is a job of its own."""
    identity = f"{run}-{number}"
    message = {"room_id": identity, "job_id": identity}
    match number % 3:
        case 0:
            event_type = "SHOOT_SCRIPT_SWITCH"
            message |= {"scene_script_name": "商品1", "shoot_script_sequence_no": str(number)}
            message |= {"shoot_script_title": f"段落{number}"}
        case 1:
            event_type = "RTMP_STREAM_STATE_CHANGE"
            message |= {"output_url": "rtmp://a/b", "stream_key": "c", "state": _STATES[number % 5]}
        case _:
            event_type = "REPLY_COMMAND_FINISH"
            message |= {"reply_id": identity}
    return _encoded(event_type, message) + b" " * (number * 37 % 1500)


def state_body(run: str, number: int) -> bytes:
    """A distinct body that is a state of one of seven jobs."""
    message = {
        "room_id": f"{run}-{number}",
        "job_id": f"{run}-job-{number % 7}",
        "output_url": f"rtmp://a/{number}",
        "stream_key": "c",
        "state": _STATES[number // 7 % 5],
    }
    return _encoded("RTMP_STREAM_STATE_CHANGE", message)


def _encoded(event_type: str, message: dict[str, str]) -> bytes:
    inner = json.dumps(message, ensure_ascii=False)
    return json.dumps({"event_type": event_type, "message": inner}, ensure_ascii=False).encode()


class Load:
    """Posts distinct events to `receivers` in turn, on several connections, from `start` until `stop` or a count.

    Each tenth event is posted twice, the same to the byte, to two receivers where there are several. Where the
    connection breaks, events with even numbers are posted again, the others are given up as MetaStudio would.
    """

    def __init__(
        self, receivers: Sequence[Receiver], *, connections: int = 4, body: Callable[[str, int], bytes] = event_body
    ) -> None:
        self.run = uuid4().hex[:8]
        self.receivers = receivers
        self.sent: dict[str, bytes] = {}
        self.acknowledged: dict[str, bytes] = {}
        self.refused = 0  # answers 503
        self.wrong: list[str] = []  # answers that may never be
        self._body = body
        self._connections = connections
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._numbers = itertools.count()
        self._left = 0
        self._lock = threading.Lock()

    def start(self, count: int | None = None) -> None:
        """Begin, or begin again."""
        assert not self._threads
        self._stopping.clear()
        self._left = -1 if count is None else count  # which is never 0 again once below
        self._threads = [threading.Thread(target=self._work) for _ in range(self._connections)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until the count is reached."""
        for thread in self._threads:
            thread.join()
        self._threads = []

    def stop(self) -> None:
        """End after the requests under way."""
        self._stopping.set()
        self.wait()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Post for as long as the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def wait_for(self, more: int = 1) -> None:
        """Wait until `more` events than now are acknowledged."""
        wanted = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= wanted or self.wrong, f"{more} events more acknowledged")
        assert not self.wrong

    def wait_until_refused(self, more: int = 1) -> None:
        """Wait until `more` events than now are answered 503."""
        wanted = self.refused + more
        wait_until(lambda: self.refused >= wanted or self.wrong, f"{more} events more refused")
        assert not self.wrong

    def post(self, receiver: Receiver) -> Answer:
        """Post one event on a connection of its own, and remember it."""
        event = self._event(next(self._numbers), receiver)
        with closing(receiver.connection()) as connection:
            answer = _send(connection, event)
        self._record(event, answer)
        return answer

    def wait_until_accepted(self, receiver: Receiver) -> None:
        """Wait until an event is accepted again, and fail where it takes for ever."""
        wait_until(lambda: self.post(receiver).status == 200, "an event that is accepted")

    def _work(self) -> None:
        connections = [receiver.connection() for receiver in self.receivers]
        try:
            while not self._stopping.is_set():
                with self._lock:
                    if self._left == 0:
                        return
                    self._left -= 1
                    number = next(self._numbers)
                event = self._event(number, self.receivers[number % len(self.receivers)])
                for place in range(number, number + (2 if number % 10 == 0 else 1)):
                    self._deliver(connections, event, place, again=number % 2 == 0)
                self._stopping.wait(0.003)  # a load, not a flood: two processors also run what is tested
        finally:
            for connection in connections:
                connection.close()

    def _deliver(self, connections: list[http.client.HTTPConnection], event: Event, place: int, *, again: bool) -> None:
        while True:
            connection = connections[place % len(connections)]
            try:
                answer = _send(connection, event)
            except (OSError, http.client.HTTPException):
                connection.close()
                if not again or self._stopping.wait(0.02):
                    return
                place += 1
            else:
                self._record(event, answer)
                return

    def _event(self, number: int, receiver: Receiver) -> Event:
        body = self._body(self.run, number)
        # Both units of time that are known: with seconds many events share one time.
        parts = urlsplit(sign(receiver.url, KEY, time.time(), milliseconds=number % 2 == 0).url)
        event = Event(f"{self.run}-{number}", body, f"{parts.path}?{parts.query}")
        self.sent[event.identity] = body
        return event

    def _record(self, event: Event, answer: Answer) -> None:
        if answer.status == 200 and answer.body == b'{"status":"accepted"}':
            self.acknowledged[event.identity] = event.body
        elif answer.status == 503 and int(answer.headers.get("retry-after", "0")) > 0:
            with self._lock:
                self.refused += 1
        else:
            self.wrong.append(f"{answer.status} {answer.body!r}")


def _send(connection: http.client.HTTPConnection, event: Event) -> Answer:
    connection.request("POST", event.target, event.body)
    response = connection.getresponse()
    return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
