"""HTTP as a whole: raw bytes on a connection, against the parts in this process or against `receiver serve`.

The invariants: what is answered 200 is a whole request that the oracle takes for right, and is stored with exactly the
bytes that h11 reads as its body, once; nothing else is stored; no answer is a 500, and no request is left waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import NamedTuple

import uvloop

from receiver.delivery import Delivery
from receiver.metrics import Metrics
from receiver.rejections import Rejections
from receiver.server.limiter import Limits
from receiver.server.server import Server
from receiver.server.sockets import listen
from receiver.web.callbacks import Callback, Rejector, public_app
from receiver.web.memory import BodyMemory
from tests.fuzz import generate
from tests.fuzz.generate import MAX_BODY_BYTES, NOW, REGISTRATIONS, TOLERANCE, TRUSTED, Case
from tests.fuzz.oracle import Registration, Request, judge, read_requests
from tests.fuzz.targets import MOST_SECONDS, Target, endpoints
from tests.helpers.proxies import SERVE
from tests.helpers.receiver import Process, running

# Behind a whole request on a connection that stays open: its answer shows that both sides agree on where they are.
_LAST = b"GET /healthz HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"
_ACCEPTED = b'{"status":"accepted"}'
_REQUEST_TIMEOUT = 20  # seconds
_STATUSES = frozenset((200, 400, 401, 404, 405, 413, 431))
# What the cases ask for, where a proxy has a name of its own.
_HOST = re.compile(rb"(?i)(\r\nhost:[ \t]*)(callbacks\.example\.com|a:443|a(?=\r)|\[::1\])")
# A tab before a header's value, which it takes for a part of it, and some headers that come twice.
_NGINX_REFUSES = re.compile(rb"(?s):\t|Expect:.*Expect:")
_AGES = 1e9  # seconds that a signature may be old where the clock is the real one
_CHUNK = re.compile(rb"\r?\n[0-9A-Fa-f]+(;[^\r\n]*)?\r?\n")  # what stands between two
_MOST_UNREAD = 1000  # that are kept
_ALIKE = 200  # cases that are looked up in the database together


class Peer(NamedTuple):
    """Who is spoken to: how to connect from an address, and the host to ask for.

    A proxy reads requests that the oracle does not, and answers what is not right as it likes.
    """

    connect: Callable[[str], socket.socket]
    host: bytes = b"a"
    is_proxy: bool = False


class Answered(NamedTuple):
    """An answer, and the request of the case that it is to; none for the last one, which was put behind."""

    status: int
    body: bytes
    request: Request | None


class Expected(NamedTuple):
    """What a case leads to: bodies that were accepted, that may be stored, and text of which others may be a part."""

    accepted: list[tuple[Registration, Request]]
    storable: list[tuple[Registration, Request]]
    unread: bytes = b""


def receiver_at(port: int) -> Peer:
    """The receiver itself."""

    def connect(source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), 60, (source, 0))

    return Peer(connect)


def converse(peer: Peer, data: bytes, *, is_whole: bool) -> bytes:
    """All that comes back on a connection of its own; it is sent in pieces that depend on the data alone."""
    random = Random(zlib.crc32(data))
    if is_whole:
        data += _LAST % peer.host
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((0, 0, 1, 2, 5, 40))))
    source = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    received = b""
    with peer.connect(source) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # who is answered early may find that nobody listens any more
            for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                client.sendall(data[begin:end])
            if not is_whole:
                socket.socket.shutdown(client, socket.SHUT_WR)  # TLS's own would end reading too
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while chunk := client.recv(65536):
                received += chunk
    return received


def read_answers(received: bytes, requests: Sequence[Request], *, is_whole: bool) -> list[Answered]:
    """The answers in `received`, in order; interim ones are left out."""
    found: list[Answered] = []
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        line = re.fullmatch(rb"HTTP/1\.1 ([0-9]{3}) [A-Za-z :-]+", head.partition(b"\r\n")[0])
        assert line, f"no answer: {head[:80]!r}"
        assert end, "an answer that is cut off"
        if line[1] == b"100":
            continue
        request = requests[len(found)] if len(found) < len(requests) else None
        is_head = request is not None and request.method == b"HEAD"
        lengths = re.findall(rb"(?mi)^content-length: ([0-9]+)\r?$", head)
        assert len(lengths) == 1 or b"\r\nConnection: close" in head, "an answer whose end cannot be told"
        size = 0 if is_head else int(lengths[0]) if lengths else len(received)
        assert len(received) >= size, "an answer that is cut off"
        found.append(Answered(int(line[1]), received[:size], request))
        received = received[size:]
    assert found or not is_whole or not requests, "no answer to a whole request"
    return found


def expect(answers: list[Answered], requests: Sequence[Request], now: float, tolerance: float) -> Expected:
    """What has to be stored, and what may be; raises AssertionError for an answer that may not be."""
    right = [_registration_of(request, now, tolerance) for request in requests]
    accepted = []
    for answer in answers:
        if answer.status != 200 or answer.body != _ACCEPTED:
            continue
        assert answer.request is not None, "accepted is what is no whole request"
        registration = right[answers.index(answer)]
        assert registration is not None, "accepted is what is not right"
        accepted.append((registration, answer.request))
    storable = [(one, request) for one, request in zip(right, requests, strict=True) if one is not None]
    return Expected(accepted, storable)


def _registration_of(request: Request, now: float, tolerance: float) -> Registration | None:
    """Whose callback a request is, if it is to be accepted."""
    for one in REGISTRATIONS:
        if one.path == request.path and request.method == b"POST" and len(request.body) <= MAX_BODY_BYTES:
            return one if judge(one, request.query, request.headers, now, tolerance) == "accepted" else None
    return None


def _exchange(peer: Peer, case: Case, now: float, tolerance: float) -> Expected:
    requests, is_whole = read_requests(case.data)
    received = converse(peer, case.data, is_whole=is_whole)
    if peer.is_proxy and not is_whole:
        right = [(_registration_of(request, now, tolerance), request) for request in requests]
        storable = [(one, request) for one, request in right if one is not None]
        return Expected([], storable, case.data)
    answers = read_answers(received, requests, is_whole=is_whole)
    assert len(answers) <= len(requests) + 1, "more answers than requests"
    statuses = [answer.status for answer in answers]
    if case.is_right:
        assert statuses == [200] * (len(requests) + 1), f"right requests are answered {statuses}"
    assert peer.is_proxy or _STATUSES.issuperset(statuses), f"answered {statuses}"
    return expect(answers, requests, now, tolerance)


class _Problems(logging.Handler):
    """What was logged as an error: nothing may be."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage() + (f" {record.exc_info[1]!r}" if record.exc_info else ""))


@contextmanager
def in_process() -> Iterator[Target]:
    """HTTP against the server and the callbacks in a thread of this process; stored is in memory."""
    stored: list[Delivery] = []
    left: Counter[tuple[str, bytes]] = Counter()  # what may be stored, and is not yet
    problems = _Problems()
    logging.getLogger().addHandler(problems)
    listener = listen("listen", "127.0.0.1", 0)
    peer = receiver_at(listener.getsockname()[1])
    started, stop = threading.Event(), threading.Event()

    def check(case: Case) -> None:
        accepted, storable, _ = _exchange(peer, case, NOW, TOLERANCE)
        left.update(_counted(storable))
        kept = Counter((one.endpoint, one.body) for one in stored if one.quarantine_reason is None)
        # Of a client that ended its side early, something may be stored only when the next case is under way.
        stored.clear()
        assert kept >= _counted(accepted), "200 for what is not stored as it was sent"
        assert kept <= left, "stored is what was not sent so"
        left.subtract(kept)
        assert not problems.found, problems.found.pop()

    thread = threading.Thread(target=_serve, args=(listener, stored, started, stop))
    thread.start()
    try:
        assert started.wait(60)
        yield Target("http", "http", generate.http_case, check, cost=20)
    finally:
        stop.set()
        thread.join()
        logging.getLogger().removeHandler(problems)


def _counted(requests: list[tuple[Registration, Request]]) -> Counter[tuple[str, bytes]]:
    return Counter((registration.name, request.body) for registration, request in requests)


def _serve(listener: socket.socket, stored: list[Delivery], started: threading.Event, stop: threading.Event) -> None:
    async def append(delivery: Delivery) -> None:
        await asyncio.sleep(0)  # as the journal's thread lets others run
        stored.append(delivery)

    async def serve() -> None:
        names = [one.name for one in REGISTRATIONS]
        metrics = Metrics(names)
        # Which is read here and never written.
        rejector = Rejector(metrics, Rejections(Path("/nowhere/rejections.json"), names), [ip_network(TRUSTED)])
        callbacks = [
            Callback(
                name=one.name,
                url=one.live_event_type_callback_url,
                verifier=one.verifier(),
                append=append,
                metrics=metrics,
                max_body_bytes=MAX_BODY_BYTES,
                memory=BodyMemory(MAX_BODY_BYTES),
                rejector=rejector,
                now=lambda: NOW,
            )
            for one in endpoints()
        ]
        limits = Limits(request_timeout=_REQUEST_TIMEOUT)
        async with Server(public_app(callbacks, rejector), listener, "public", metrics, limits=limits).serving(1):
            started.set()
            while not stop.is_set():  # noqa: ASYNC110 (it is another thread's event)
                await asyncio.sleep(0.05)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


@contextmanager
def over_sockets(folder: Path) -> Iterator[Target]:
    """HTTP against `receiver serve`; what is stored is looked up in its database, for many cases at once."""
    with serving(folder) as receiver:
        served = Served(receiver, receiver_at(receiver.port))
        yield Target("serve", "http", generate.http_case, served.check, cost=50, is_repeatable=False)
        served.look_up()


@contextmanager
def over_proxy(folder: Path, name: str) -> Iterator[Target]:
    """The same through a proxy, over TLS."""
    own = folder / name
    (own / "proxy").mkdir(parents=True)
    with serving(own) as receiver, SERVE[name](own / "proxy", receiver) as proxy:
        served = Served(receiver, Peer(proxy.connect, b"localhost", is_proxy=True))

        def check(case: Case) -> None:
            is_right = case.is_right and not _NGINX_REFUSES.search(case.data)
            served.check(Case(_HOST.sub(rb"\1localhost", case.data), is_right))

        yield Target(name, "http", generate.http_case, check, cost=100, is_repeatable=False)
        served.look_up()


@contextmanager
def serving(folder: Path) -> Iterator[Process]:
    """A receiver for the cases."""
    (folder / "fuzz.toml").write_text(_configuration())
    limits = {"RECEIVER_MAX_BODY_BYTES": str(MAX_BODY_BYTES), "RECEIVER_REQUEST_TIMEOUT": str(_REQUEST_TIMEOUT)}
    proxies = {"RECEIVER_TRUSTED_PROXIES": TRUSTED}
    with running(folder, tls=False, RECEIVER_CONFIG="fuzz.toml", **limits, **proxies) as receiver:
        yield receiver
        assert receiver.stop() == 0
        assert "Traceback" not in receiver.log, receiver.log


class Served:
    """A receiver in a process of its own, and what `peer`, which passes all on to it, has answered of late."""

    def __init__(self, receiver: Process, peer: Peer) -> None:
        self._receiver = receiver
        self._peer = peer
        self._accepted: Counter[tuple[str, bytes]] = Counter()
        self._storable: Counter[tuple[str, bytes]] = Counter()
        self._unread = deque[bytes](maxlen=_MOST_UNREAD)
        self._looked_up = {"events": 0, "quarantine": 0}
        self._cases = 0

    def check(self, case: Case) -> None:
        """Send one case, and see to the process; each so many cases, to the database."""
        began = self._receiver.processor_seconds()
        accepted, storable, unread = _exchange(self._peer, case, NOW, _AGES)
        assert self._receiver.processor_seconds() - began < MOST_SECONDS, "the receiver took too long"
        assert self._receiver.process.poll() is None, self._receiver.log
        self._accepted += _counted(accepted)
        self._storable += _counted(storable)
        self._unread += [_joined(unread), _joined(_CHUNK.sub(b"", unread))] if unread else []
        self._cases += 1
        if self._cases % _ALIKE == 0:
            self.look_up()

    def look_up(self) -> None:
        """Whether the database has got since then what was accepted, as often as it was sent, and nothing else."""
        stored: Counter[tuple[str, bytes]] = Counter()
        for table, which in (("events", "1"), ("quarantine", "reason != 'stale'")):
            query = f"SELECT id, endpoint, CAST(body AS BLOB) FROM {table} WHERE id > ? AND {which} ORDER BY id"
            for number, endpoint, body in self._receiver.rows(query, self._looked_up[table]):
                self._looked_up[table] = number
                stored[endpoint, bytes(body)] += 1
        for endpoint, body in self._accepted.keys() - stored.keys():
            # It may be the same to the byte as one of an earlier look.
            once = "SELECT 1 FROM {} WHERE endpoint = ? AND CAST(body AS BLOB) = ?"
            found = [self._receiver.rows(once.format(table), endpoint, body) for table in self._looked_up]
            assert any(found), f"200 for what is not stored as it was sent: {endpoint} {body[:200]!r}"
        for endpoint, body in stored - self._storable:
            is_known = any(_joined(body) in text for text in self._unread)
            assert is_known, f"stored is what was not sent so: {endpoint} {body!r}"
        self._accepted.clear()
        self._storable -= stored  # the rest may come later, of clients that ended their side early


def _joined(text: bytes) -> bytes:
    """The text in one line: proxies read where a line ends in more ways than one."""
    return text.translate(None, b"\r\n")


def _configuration() -> str:
    """The registrations as a file of settings, for signatures of any age."""
    text = ""
    for one in REGISTRATIONS:
        text += f'[[endpoints]]\nname = "{one.name}"\nlive_event_type_callback_url = "{one.url}"\n'
        text += f'auth_type = "{one.auth_type}"\ntimestamp_tolerance = {int(_AGES)}\n'
        text += "".join(f'{name} = "{key}"\n' for name, key in zip(("key", "previous_key"), one.keys, strict=False))
    return text
