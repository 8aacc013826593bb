"""A second receiver takes over the port: nobody is refused, nothing is lost."""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

from tests.helpers.receiver import SAMPLES, Process, running, wait_until

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
_numbers = itertools.count()


class Client(threading.Thread):
    """Sends distinct callbacks until told to stop, all on one connection or each on a new one."""

    def __init__(self, receiver: Process, *, keep_alive: bool) -> None:
        super().__init__()
        self.answers: Counter[str] = Counter()
        self.ended = threading.Event()
        self._receiver = receiver
        self._keep_alive = keep_alive

    def run(self) -> None:
        """Send and count."""
        while not self.ended.is_set():
            with closing(self._receiver.connection()) as connection:
                while not self.ended.is_set():
                    try:
                        connection.request("POST", self._receiver.target(), distinct(next(_numbers)))
                        response = connection.getresponse()
                        response.read()
                        self.answers[str(response.status)] += 1
                    except OSError as error:
                        self.answers[repr(error)] += 1
                        break
                    if not self._keep_alive:
                        break


def distinct(number: int) -> bytes:
    return SAMPLE.replace(b"Paragraph 2", b"Paragraph %d" % number)


def test_taking_over_the_port(tmp_path: Path) -> None:
    """While receivers take a port over from one another, each callback of busy clients is answered 200 and stored."""
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    shared = f"sqlite:///{tmp_path}/shared.db"
    with running(folders[0], RECEIVER_DATABASE_URL=shared) as first:
        clients = [Client(first, keep_alive=number % 2 == 0) for number in range(6)]
        for client in clients:
            client.start()
        receivers = [first]
        try:
            for folder in folders[1:]:
                for name in ("tls.crt", "tls.key"):
                    shutil.copy(folders[0] / name, folder)
                following = Process(
                    folder,
                    RECEIVER_LISTEN=f"127.0.0.1:{first.port}",
                    RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL=first.url,
                    RECEIVER_DATABASE_URL=shared,
                )
                receivers.append(following.start())
                wait_until(partial(shares, following), "its share of the callbacks")
                assert receivers[-2].stop() == 0
        finally:
            for client in clients:
                client.ended.set()
            for client in clients:
                client.join()
            for receiver in receivers:
                if receiver.process.poll() is None:
                    receiver.stop()
    answers = sum((client.answers for client in clients), Counter[str]())
    assert set(answers) == {"200"}, answers
    # What a receiver has not stored before it ended stays in its journal.
    files = [(tmp_path / "shared.db", "events"), *((folder / "var/journal.db", "inbox") for folder in folders)]
    assert sum(count(*file) for file in files) == answers["200"]
    assert all("Traceback" not in receiver.log for receiver in receivers)


def test_a_callback_just_before_the_end(tmp_path: Path) -> None:
    """A client that is connected and idle may still send a callback when the receiver has begun to end."""
    with running(tmp_path, tls=False) as receiver, closing(receiver.connection()) as idle:
        idle.connect()
        receiver.process.send_signal(signal.SIGTERM)
        wait_until(partial(refuses, receiver.port), "a closed port")
        idle.request("POST", receiver.target(), SAMPLE)
        response = idle.getresponse()
        assert (response.status, response.getheader("connection")) == (200, "close")
        assert receiver.process.wait(60) == 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def shares(receiver: Process) -> bool:
    return receiver.metric("callbacks_total", "default", "accepted") > 0


def count(file: Path, table: str) -> int:
    with closing(sqlite3.connect(file)) as connection:
        rows: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return rows
