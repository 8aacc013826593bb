"""Clients that mean harm: slow ones by the thousand, and requests that two parsers could read in two ways."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.helpers.receiver import SAMPLES, Process, running, wait_until

SAMPLE = SAMPLES["REPLY_COMMAND_FINISH"]
SLOW_CONNECTIONS = 2000
MOST_CONNECTIONS = 800
MOST_FILES = 1000  # fewer than the slow connections would need
REQUEST_TIMEOUT = 10
ATTACK_SECONDS = 10
ANSWERS = 50
CLIENT_TIMEOUT = 8  # seconds: fewer than the attack lasts once all files are taken


@contextmanager
def besieged(folder: Path, *, tls: bool) -> Iterator[Process]:
    """A receiver with fewer places, and files, than there are slow clients."""
    limits = {"RECEIVER_MAX_CONNECTIONS": str(MOST_CONNECTIONS), "RECEIVER_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT)}
    with running(folder, tls=tls, **limits) as process:
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


class WellBehaved(threading.Thread):
    """Sends callbacks from an address of its own, each on a new connection, until told to stop."""

    def __init__(self, receiver: Process) -> None:
        super().__init__()
        self.answers: Counter[str] = Counter()
        self._receiver = receiver
        self._told_to_stop = threading.Event()

    def run(self) -> None:
        """Send and count."""
        while not self._told_to_stop.is_set():
            self.answers[self._post()] += 1

    def end(self) -> None:
        """Stop after the callback that is under way."""
        self._told_to_stop.set()
        self.join()

    def _post(self) -> str:
        connection = self._receiver.connection("127.0.0.2", timeout=CLIENT_TIMEOUT)
        with closing(connection):
            try:
                connection.request("POST", self._receiver.target(), SAMPLE)
                return str(connection.getresponse().status)
            except OSError as error:
                return repr(error)


@contextmanager
def well_behaved(receiver: Process, clients: int = 2) -> Iterator[Counter[str]]:
    """Clients that send callbacks all the time, and what they are answered."""
    senders = [WellBehaved(receiver) for _ in range(clients)]
    answers: Counter[str] = Counter()
    for sender in senders:
        sender.answers = answers
        sender.start()
    try:
        yield answers
    finally:
        for sender in senders:
            sender.end()


def resident_bytes(receiver: Process) -> int:
    """The most memory that it ever had."""
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


ATTACKS = {
    "header": "-H -t POST -i 1",
    "body": "-B -i 1 -s 9000",
    "read": "-X -k 5 -w 1 -y 10 -n 1 -z 5",
}


def check(receiver: Process, answers: Counter[str]) -> None:
    """What holds under every attack."""
    assert answers["200"] >= 0.999 * answers.total(), answers
    assert answers["200"] >= ANSWERS
    assert resident_bytes(receiver) < 256 * 2**20
    assert receiver.metric("connections", "public") <= MOST_CONNECTIONS
    assert sum(receiver.metric("connections_dropped_total", "public", reason) for reason in ("limit", "timeout")) > 0


@pytest.mark.parametrize("mode", ATTACKS)
def test_slow_clients(tmp_path: Path, mode: str) -> None:
    """2,000 slow connections, in the body's mode with a right signature, keep nobody else's callback from its 200."""
    with besieged(tmp_path, tls=False) as receiver:
        url = f"http://127.0.0.1:{receiver.port}{receiver.target()}"
        attack = f"slowhttptest -c {SLOW_CONNECTIONS} -r 1000 -l 120 {ATTACKS[mode]} -u".split()
        with subprocess.Popen([*attack, url], stdout=subprocess.DEVNULL) as attacker, well_behaved(receiver) as answers:
            enough = time.monotonic() + ATTACK_SECONDS
            # For as long as it takes a busy machine to give this many answers. The attacker ends by itself when all its
            # connections are dropped.
            wait_until(lambda: answers.total() >= ANSWERS and time.monotonic() > enough, "callbacks under attack")
            attacker.terminate()
        check(receiver, answers)


def test_clients_that_never_shake_hands(tmp_path: Path) -> None:
    """2,000 connections that send nothing where TLS is spoken are bounded before the handshake, and then ended."""
    with besieged(tmp_path, tls=True) as receiver, contextlib.ExitStack() as silent:
        with well_behaved(receiver) as answers:
            for _ in range(SLOW_CONNECTIONS):
                silent.enter_context(socket.create_connection(("127.0.0.1", receiver.port), timeout=10))
            wait_until(lambda: sum(answers.values()) > 100, "callbacks")
            wait_until(lambda: receiver.metric("connections", "public") <= 2, "the end of those")
        check(receiver, answers)


def request(*headers: str, line: str = "GET /healthz HTTP/1.1", end: str = "\r\n", body: str = "") -> bytes:
    return (end.join((line, *headers, "", "")) + body).encode()


CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    "no Host": request(),
    "Host twice": request("Host: a", "Host: a"),
    "Host twice in HTTP/1.0": request("Host: a", "Host: b", line="GET /healthz HTTP/1.0"),
    "bare LF": request("Host: a", end="\n"),
    "bare LF in a header": request("Host: a\nX: b"),
    "bare CR": request("Host: a\rX: b"),
    "folded header": request("Host: a", "X: b", " c"),
    "folded Content-Length": request("Host: a", "Content-Length: 1", " 0", body="{"),
    "blank before the colon": request("Host : a"),
    "NUL in a header": request("Host: a\0b"),
    "length twice": request("Host: a", "Content-Length: 1", "Content-Length: 1", body="{"),
    "lengths that differ": request("Host: a", "Content-Length: 1", "Content-Length: 2", body="{}"),
    "list of lengths": request("Host: a", "Content-Length: 1, 1", body="{"),
    "length with a sign": request("Host: a", "Content-Length: +1", body="{"),
    "length and coding": request("Host: a", "Content-Length: 5", CHUNKED, body="0\r\n\r\n"),
    "coding and length": request("Host: a", CHUNKED, "Content-Length: 5", body="0\r\n\r\n"),
    "coding twice": request("Host: a", CHUNKED, CHUNKED, body="0\r\n\r\n"),
    "another coding": request("Host: a", "Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"),
    "coding in HTTP/1.0": request(CHUNKED, line="POST / HTTP/1.0", body="0\r\n\r\n"),
    "coding that is hidden": request("Host: a", "Transfer-Encoding: xchunked", body="0\r\n\r\n"),
    "bare LF in a chunk": request("Host: a", CHUNKED, line="POST / HTTP/1.1", body="1\n{\r\n0\r\n\r\n"),
    "no chunk after Expect": request("Host: a", CHUNKED, "Expect: 100-continue", line="POST / HTTP/1.1", body="z\r\n"),
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": request("Host: a", line="GET /healthz HTTP/1.2"),
    "HTTP/2.0": request("Host: a", line="GET /healthz HTTP/2.0"),
}
LARGE = {
    "101 headers": request("Host: a", *["X: y"] * 100),
    "one large header": request("Host: a", "X: " + "y" * 2**16),
    "one large header without an end": request("Host: a")[:-2] + b"X: " + b"y" * 2**17,
    "a large name without an end": request("Host: a")[:-2] + b"x" * 2**17,
    "many headers without an end": request("Host: a")[:-2] + b"X: y\r\n" * 2**14,
    "a large URL": request("Host: a", line="GET /" + "x" * 2**16 + " HTTP/1.1"),
    "blank lines": b"\r\n" * 2**16,
    "a large trailer": request("Host: a", CHUNKED, line="POST / HTTP/1.1") + b"0\r\nX: " + b"y" * 2**20,
    "a large chunk extension": request("Host: a", CHUNKED, line="POST / HTTP/1.1") + b"1;" + b"y" * 2**20,
}


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver with short deadlines, for the rest of the module."""
    folder = tmp_path_factory.mktemp("receiver")
    with running(folder, tls=False, RECEIVER_REQUEST_TIMEOUT=str(DEADLINE)) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


DEADLINE = 3
HEAD_DEADLINE = DEADLINE / 3


@pytest.mark.parametrize(
    ("raw", "status"),
    [pytest.param(raw, 400, id=name) for name, raw in MALFORMED.items()]
    + [pytest.param(raw, 431, id=name) for name, raw in LARGE.items()],
)
def test_what_is_no_proper_request(receiver: Process, raw: bytes, status: int) -> None:
    """What two parsers could read in two ways, or is too large, is refused and the connection closed, and counted."""
    before = receiver.metric("connections_dropped_total", "public", "malformed")
    raw = raw.replace(b"POST / ", f"POST {receiver.target()} ".encode())  # else its body would not be read
    with receiver.connect() as connection:
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            connection.sendall(raw)
        answer = b"".join(iter(lambda: receive(connection), b""))
    assert [int(found) for found in re.findall(rb"^HTTP/1.1 (\d+)", answer, flags=re.MULTILINE)] == [status]
    assert receiver.metric("connections_dropped_total", "public", "malformed") == before + 1


def receive(connection: socket.socket) -> bytes:
    """Some bytes; none at the end, however it comes."""
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def test_what_came_before_is_answered(receiver: Process) -> None:
    """Callbacks in front of a malformed request on one connection are accepted, and answered first."""
    post = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(SAMPLE)}\r\n\r\n".encode() + SAMPLE
    received = receiver.exchange(post * 3 + MALFORMED["no Host"], answers=9)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"200", b"400"]


def test_trailers_are_no_headers(receiver: Process) -> None:
    """What stands behind a body cannot change how its header was understood."""
    head = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\n{CHUNKED}\r\n\r\n".encode()
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(SAMPLE), SAMPLE)
    raw = head + chunk + b"Host: b\r\nX-HW-MSS-Time: 1\r\n\r\n"
    assert receiver.exchange(raw * 2, answers=2).count(b"HTTP/1.1 200") == 2


def test_upgrade_is_not_taken_up(receiver: Process) -> None:
    """A client that offers another protocol is answered in this one."""
    raw = request("Host: a", "Connection: Upgrade", "Upgrade: h2c")
    assert receiver.exchange(raw).startswith(b"HTTP/1.1 200")


def test_http_1_0_needs_no_host(receiver: Process) -> None:
    """Load balancers ask for /healthz in HTTP/1.0."""
    assert receiver.exchange(request(line="GET /healthz HTTP/1.0"), answers=2).startswith(b"HTTP/1.1 200")


SLOW: dict[str, tuple[bytes, bytes, float]] = {
    "nothing": (b"", b"", HEAD_DEADLINE),
    "blank lines": (b"", b"\r\n", HEAD_DEADLINE),
    "the header": (b"POST / HTTP/1.1\r\n", b"X: y\r\n", HEAD_DEADLINE),
    "the body": (b"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n", b"y", DEADLINE),
    "chunks": (
        b"POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\ny\r\n",
        DEADLINE,
    ),
    "the next header": (request("Host: a") + b"POST /", b"x", HEAD_DEADLINE),
    "the next request": (request("Host: a"), b"", DEADLINE),
}


def test_deadlines_are_absolute(receiver: Process) -> None:
    """Each part of a request has its time, which no trickle of bytes makes longer; nor does an idle connection last."""
    before = receiver.metric("connections_dropped_total", "public", "timeout")
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        slow = {name: stack.enter_context(receiver.connect()) for name in SLOW}
        for name, connection in slow.items():
            connection.settimeout(0.02)
            connection.sendall(SLOW[name][0].replace(b"{target}", receiver.target().encode()))
        lasted: dict[str, float] = {}

        def all_ended() -> bool:
            for name in slow.keys() - lasted.keys():
                if has_ended(slow[name], SLOW[name][1]):
                    lasted[name] = time.monotonic() - began
            return len(lasted) == len(slow)

        wait_until(all_ended, "the end of all slow clients")
    assert [name for name, (_, _, seconds) in SLOW.items() if lasted[name] < seconds] == []
    assert receiver.metric("connections_dropped_total", "public", "timeout") == before + len(SLOW)


def has_ended(connection: socket.socket, drip: bytes) -> bool:
    """Send a little more; whether the other side has closed."""
    try:
        connection.sendall(drip)
        return not connection.recv(65536)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_answers_that_are_not_read(receiver: Process) -> None:
    """A client that asks for much and reads nothing is dropped."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", receiver.operations_port))
        connection.sendall(request("Host: a", line="GET /metrics HTTP/1.1") * 30)
        name = ("connections_dropped_total", "operations", "timeout")
        wait_until(lambda: receiver.metric(*name) == 1, "its end")
