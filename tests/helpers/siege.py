"""Attacks on a listener, each in a process of its own, and senders that go on meanwhile.

Run as `python -m tests.helpers.siege KIND PORT CONNECTIONS PER_SECOND PAYLOAD`; it opens that many connections, from
as many addresses of the loopback, sends the payload (in hex) on each, and holds them until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from tests.helpers.receiver import SAMPLES, Process

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
SENDER = "127.0.0.2"
_LARGE = 2**20  # bytes: the most that a body may have
_LARGE_AT_ONCE = 250  # far more than there is room for
_HELD = 4000  # connections at most: beyond that the oldest are closed
_ROUND = 0.01  # seconds
_TIMEOUT = 60  # seconds for one callback, however busy the machine is


def client_hello() -> bytes:
    """The first message of a TLS handshake."""
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


@contextmanager
def siege(
    receiver: Process, connections: int, per_second: int, payload: bytes = b""
) -> Iterator[subprocess.Popen[bytes]]:
    """An attack that lasts, once all its connections are made, until the block ends."""
    arguments = [str(receiver.port), str(connections), str(per_second), payload.hex() or "-"]
    command = [sys.executable, "-m", "tests.helpers.siege", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_TIMEOUT)


def attack(port: int, connections: int, per_second: int, payload: bytes) -> None:
    """Make the connections, `per_second` of them, and hold them."""
    _allow_files(2 * _HELD)
    held: deque[socket.socket] = deque()
    unsent = selectors.DefaultSelector()
    began, made = time.monotonic(), 0
    while made < connections:
        due = min(connections, int((time.monotonic() - began) * per_second) + 1)
        for _ in range(due - made):
            one = socket.socket()
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: else the ports run out
            host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
            one.bind((host, 0))
            one.connect_ex(("127.0.0.1", port))
            held.append(one)
            if payload:
                unsent.register(one, selectors.EVENT_WRITE)
            if len(held) > _HELD:
                oldest = held.popleft()
                with contextlib.suppress(KeyError):
                    unsent.unregister(oldest)
                oldest.close()
        made = due
        if payload:
            _send(unsent, payload)
        else:
            time.sleep(_ROUND)
    end = time.monotonic() + 1
    while payload and unsent.get_map() and time.monotonic() < end:
        _send(unsent, payload)


def _allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, number)), hard))


def _send(unsent: selectors.BaseSelector, payload: bytes) -> None:
    for key, _ in unsent.select(_ROUND):
        unsent.unregister(key.fileobj)
        with contextlib.suppress(OSError):
            key.fileobj.send(payload)  # type: ignore[union-attr] # which are sockets


def large_bodies(receiver: Process, targets: Sequence[str], *, is_chunked: bool) -> Counter[str]:
    """What clients are answered, one for each target, who send a body of 1 MiB but for its end, and then wait.

    They are not so many at once that they would throw each other out before they have sent it.
    """
    answers: Counter[str] = Counter()
    trust = receiver.trust if receiver.tls else None
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {_LARGE}"
    body = b"%x\r\n" % _LARGE * is_chunked + b"x" * (_LARGE - 1)

    async def client(number: int, target: str) -> None:
        options: dict[str, Any] = {"ssl": trust, "server_hostname": "localhost"} if trust else {}
        options["local_addr"] = f"127.{number % 200 + 1}.{number // 200 + 1}.7", 0
        writer = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port, **options)
            writer.write(f"POST {target} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode() + body)
            answers[(await reader.read(100))[9:12].decode() or "closed"] += 1
        except OSError as error:
            answers[type(error).__name__] += 1
        finally:
            if writer is not None:
                writer.transport.abort()

    async def run() -> None:
        turns = asyncio.Semaphore(_LARGE_AT_ONCE)

        async def in_turn(number: int, target: str) -> None:
            async with turns:
                await client(number, target)

        await asyncio.gather(*map(in_turn, count(), targets))

    _allow_files(2 * _LARGE_AT_ONCE)
    asyncio.run(run())
    return answers


class Answered(NamedTuple):
    """What a callback was answered, and after how many seconds."""

    answer: str
    seconds: float


class Sender(threading.Thread):
    """Sends callbacks from one address, on one connection or each on a new one, until told to stop."""

    def __init__(self, receiver: Process, *, keeps: bool, pause: float = 0.02) -> None:
        super().__init__()
        self.answered: list[Answered] = []
        self._receiver = receiver
        self._trust = receiver.trust if receiver.tls else None
        self._keeps = keeps
        self._pause = pause
        self._told_to_stop = threading.Event()
        self._connection: socket.socket | None = None

    def run(self) -> None:
        """Send, and note what comes of it."""
        while not self._told_to_stop.wait(self._pause):
            began = time.monotonic()
            try:
                answer = self._post()
            except OSError as error:
                answer = repr(error)
                self._close()
            self.answered.append(Answered(answer, time.monotonic() - began))
            if not self._keeps:
                self._close()
        self._close()

    def end(self) -> None:
        """Stop after the callback that is under way."""
        self._told_to_stop.set()
        self.join()

    @property
    def answers(self) -> Counter[str]:
        """How often each answer came."""
        return Counter(one.answer for one in self.answered)

    def milliseconds(self, share: float) -> float:
        """Within how long this share of the callbacks was answered."""
        times = sorted(one.seconds for one in self.answered)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))]

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self) -> str:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._receiver.port), _TIMEOUT, (SENDER, 0))
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._trust is not None:
                self._connection = self._trust.wrap_socket(self._connection, server_hostname="localhost")
        head = f"POST {self._receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(SAMPLE)}\r\n\r\n"
        self._connection.sendall(head.encode() + SAMPLE)
        received = b""
        while b"}" not in received:
            chunk = self._connection.recv(65536)
            if not chunk:
                raise ConnectionResetError("closed")
            received += chunk
        return received[9:12].decode()


@contextmanager
def senders(receiver: Process) -> Iterator[list[Sender]]:
    """One that keeps its connection and one that does not. Each had a callback accepted when the block begins."""
    both = [Sender(receiver, keeps=True), Sender(receiver, keeps=False)]
    for sender in both:
        sender.start()
    try:
        while not all(sender.answered for sender in both):
            time.sleep(0.01)
        yield both
    finally:
        for sender in both:
            sender.end()


if __name__ == "__main__":
    _port, _connections, _per_second, _payload = sys.argv[1:]
    attack(int(_port), int(_connections), int(_per_second), b"" if _payload == "-" else bytes.fromhex(_payload))
    print("made", flush=True)  # noqa: T201 (for the one who waits for it)
    sys.stdin.read()
