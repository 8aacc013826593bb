"""A receiver is restarted under load, or shares its port: no connection is refused or reset, and no event is lost."""

from __future__ import annotations

import itertools
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.helpers.activation import ActivatedReceiver
from tests.helpers.load import Receiver, ended
from tests.helpers.receiver import SAMPLES, Process, free_port, running, wait_until

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
RESTARTS = 5
LONGEST_WAIT = 20  # seconds: what is usual is printed, and this holds on a busy machine too
PAUSES = (0.0, 0.02, 0.7, 1.5)  # seconds between two callbacks on a kept connection; some longer than idle ones last
NEW_CONNECTIONS = 3  # clients that make one for each callback
_numbers = itertools.count()


class Client(threading.Thread):
    """Sends distinct callbacks until told to stop: on one connection, with `pause` seconds between, or each on its own.

    Like HTTP clients that keep connections, it makes a new one where the receiver has closed the old one in between.
    """

    def __init__(self, receiver: Process, stopping: threading.Event, pause: float | None) -> None:
        super().__init__()
        self.answers: Counter[str] = Counter()
        self.longest = 0.0
        self.connections = 0
        self._receiver = receiver
        self._stopping = stopping
        self._pause = pause

    def run(self) -> None:
        """Send, count, and measure."""
        while not self._stopping.is_set():
            self.connections += 1
            with closing(self._receiver.connection()) as connection:
                self._send(connection)
                while self._pause is not None and connection.sock is not None:
                    if self._stopping.wait(self._pause) or is_closed(connection):
                        break
                    self._send(connection)
            self._stopping.wait(0.005)

    def _send(self, connection: HTTPConnection) -> None:
        began = time.monotonic()
        try:
            connection.request("POST", self._receiver.target(), distinct(next(_numbers)))
            response = connection.getresponse()
            response.read()
            self.answers[str(response.status)] += 1
        except OSError as error:
            self.answers[repr(error)] += 1
            connection.close()
        self.longest = max(self.longest, time.monotonic() - began)


def is_closed(connection: HTTPConnection) -> bool:
    """Whether the other side has closed an idle connection in order; a connection that broke is none of these."""
    connection.sock.settimeout(0)
    try:
        return not connection.sock.recv(1)
    except (ssl.SSLWantReadError, BlockingIOError):
        connection.sock.settimeout(60)
        return False


def distinct(number: int) -> bytes:
    return SAMPLE.replace(b"Paragraph 2", b"Paragraph %d" % number)


@contextmanager
def load(receiver: Process) -> Iterator[list[Client]]:
    """Clients of each kind, which send for as long as the block."""
    stopping = threading.Event()
    clients = [Client(receiver, stopping, pause) for pause in (*PAUSES, *[None] * NEW_CONNECTIONS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        stopping.set()
        for client in clients:
            client.join()


def answered(clients: list[Client]) -> Counter[str]:
    return sum((client.answers for client in clients), Counter[str]())


def send_more(clients: list[Client]) -> None:
    wanted = answered(clients).total() + 200
    wait_until(lambda: answered(clients).total() > wanted, "a steady load")


def test_restart_on_a_socket_that_stays_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a receiver is restarted, each callback of a steady load is answered 200, and stored once."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        receiver = ActivatedReceiver(tmp_path, listener)
        longest_stop = 0.0
        with ended(receiver):
            receiver.start()
            with load(receiver) as clients:
                for _ in range(RESTARTS):
                    send_more(clients)
                    began = time.monotonic()
                    assert receiver.stop() == 0
                    longest_stop = max(longest_stop, time.monotonic() - began)
                    receiver.start()
            answers = answered(clients)
            longest = max(client.longest for client in clients)
            connections = sum(client.connections for client in clients)
            with capsys.disabled():
                print(  # noqa: T201 (the figures that an operator asks for)
                    f"\n{RESTARTS} restarts: {answers.total()} callbacks on {connections} connections, {dict(answers)};"
                    f" longest wait {longest:.2f} s, longest stop {longest_stop:.2f} s"
                )
            assert set(answers) == {"200"}, answers
            (stored,) = receiver.rows("SELECT count(*), count(DISTINCT body) FROM events")
            assert tuple(stored) == (answers["200"], answers["200"])
            assert longest < LONGEST_WAIT
            assert receiver.stop() == 0
            assert "Traceback" not in receiver.log
            assert receiver.log.count("listening on the socket from systemd") == RESTARTS + 1


def test_started_by_the_first_connection(tmp_path: Path) -> None:
    """By systemd's own tool: the receiver is started when a client connects, and answers it."""
    port = free_port()
    receiver = Receiver(tmp_path, under=["systemd-socket-activate", f"--listen=127.0.0.1:{port}"])
    # It passes on no other variables.
    receiver.under += tuple(f"--setenv={name}" for name in (*receiver.environ, "PYTHONPATH"))
    receiver.port = port
    with ended(receiver):
        receiver.spawn()
        wait_until(lambda: not refuses(port), "systemd's socket")
        wait_until(receiver.serves, "the receiver")
        assert receiver.post(SAMPLE).status == 200
        assert f"Receiving on https://127.0.0.1:{port}," in (tmp_path / "serve.out").read_text()
        assert receiver.stop() == 0


def test_receivers_that_share_a_port(tmp_path: Path) -> None:
    """Two receivers on one port, each with its own journal, both answer; one goes on when the other has ended."""
    database = f"sqlite:///{tmp_path}/shared.db"
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    with running(folders[0], tls=False, RECEIVER_DATABASE_URL=database) as one:
        environ = {"RECEIVER_LISTEN": f"127.0.0.1:{one.port}", "RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL": one.url}
        with running(folders[1], tls=False, RECEIVER_DATABASE_URL=database, **environ) as other:
            wait_until(lambda: one.post(SAMPLE).status == 200 and accepts(one) and accepts(other), "each one's share")
            assert other.stop() == 0
        assert [one.post(SAMPLE).status for _ in range(20)] == [200] * 20


def test_receivers_that_share_an_inherited_socket(tmp_path: Path) -> None:
    """Likewise on one socket that stays open: while one is stopped the other answers, and no connection is lost."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        receivers = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            receivers.append(ActivatedReceiver(tmp_path / name, listener, tls=False))
        one, other = receivers
        other.url = one.url
        other.environ["RECEIVER_LIVE_EVENT_TYPE_CALLBACK_URL"] = one.url
        with ended(one, other):
            one.start()
            other.start()
            with load(one) as clients:
                wait_until(lambda: accepts(one) and accepts(other), "each one's share")
                assert other.stop() == 0
                send_more(clients)
            assert set(answered(clients)) == {"200"}
            assert one.stop() == 0


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


def accepts(receiver: Process) -> bool:
    return receiver.metric("callbacks_total", "default", "accepted") > 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
