"""What is answered 200 is stored with exactly the bytes that were sent; all else is refused."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from hypothesis import given, settings
from uvicorn.server import ServerState

from receiver.delivery import Delivery
from receiver.metrics import Metrics
from receiver.protocol.signature import AuthType, Verifier, sign
from receiver.rejections import Rejections
from receiver.server.connection import Connection
from receiver.server.limiter import ConnectionLimiter, Limits
from receiver.web.callbacks import Callback, Rejector, public_app
from receiver.web.memory import BodyMemory
from tests.helpers.quick import computes
from tests.helpers.receiver import KEY
from tests.helpers.requests import ODD_HEADERS, Sent, chunked, requests, statuses

URL = "https://localhost/callbacks"
_SIGNED = urlsplit(sign(URL, KEY, time.time()).url)
TARGET = f"{_SIGNED.path}?{_SIGNED.query}"
A_DAY = 86400  # however long the tests take


class Transport(asyncio.Transport):
    """A transport that gives each piece to the connection as one read, and keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)})
        self.written = b""
        self._is_closing = self._is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += b"" if self._is_closing else bytes(data)

    def close(self) -> None:
        self._is_closing = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not self._is_paused and not self._is_closing

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


def exchange(pieces: list[bytes]) -> tuple[list[int], list[bytes]]:
    """What is answered and what is stored when these arrive one by one."""

    async def run() -> tuple[list[int], list[bytes]]:
        stored: list[bytes] = []

        async def append(delivery: Delivery) -> None:
            await asyncio.sleep(0)
            stored.append(delivery.body)

        verifier = Verifier(URL, AuthType.MSS_A, [KEY], tolerance=A_DAY)
        metrics = Metrics()
        rejector = Rejector(metrics, Rejections(Path("/nowhere/rejections.json"), ["default"]), ())
        callback = Callback(
            name="default",
            url=URL,
            verifier=verifier,
            append=append,
            metrics=metrics,
            max_body_bytes=2**20,
            memory=BodyMemory(2**20),
            rejector=rejector,
        )
        app = public_app([callback], rejector)
        config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
        limiter = ConnectionLimiter[Connection](Limits(), "public", Metrics())
        connection = Connection(config, ServerState(), limiter, "192.0.2.1")
        limiter.add(connection, 0)
        transport = Transport()
        connection.connection_made(transport)
        for piece in pieces:
            for _ in range(10):  # turns of the loop, in which what is ready is answered
                await asyncio.sleep(0)
            if transport.is_reading():
                connection.data_received(piece)
        for _ in range(50):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        left = weakref.ref(connection)
        del connection
        for _ in range(10):
            await asyncio.sleep(0)
        assert left() is None, "a connection that has ended waits with its buffers for the garbage collector"
        return statuses(transport.written), stored

    gc.disable()
    try:
        return asyncio.run(run())
    finally:
        gc.enable()


def check(sent: Sent) -> list[int]:
    """What is answered to `sent`, if what is answered 200 is what is stored."""
    answers, stored = exchange(sent.pieces)
    assert stored == [body for body, status in zip(sent.bodies, answers, strict=False) if status == 200]
    assert set(answers) <= {200, 400}
    return answers


@settings(max_examples=100, deadline=None)
@given(requests(TARGET))
def test_what_is_accepted_is_what_was_sent(sent: Sent) -> None:
    """Whatever its header holds and wherever it is cut, a request is stored byte for byte, or is not answered 200."""
    computes()
    check(sent)


UPGRADES = [header for header in ODD_HEADERS if "pgrade" in header]
BODY = b'{"event_type":"A","message":{}}'


@pytest.mark.parametrize(
    ("coding", "version"), [("length", "1.0"), ("none", "1.0"), ("length", "1.1"), ("chunked", "1.1"), ("none", "1.1")]
)
@pytest.mark.parametrize("upgrade", [*UPGRADES[0:3], "Connection: Upgrade\r\nUpgrade: websocket"])
def test_upgrade_is_ignored(upgrade: str, coding: str, version: str) -> None:
    """A request that asks for another protocol, as Java's own client does each time, is taken as if it did not.

    In one piece, and cut anywhere; the requests behind it are read as such.
    """
    framing, content = {
        "length": (f"Content-Length: {len(BODY)}\r\n", BODY),
        "chunked": ("Transfer-Encoding: chunked\r\n", chunked(BODY, [7])),
        "none": ("", b""),
    }[coding]
    if not upgrade.startswith("Connection: U"):
        upgrade += "\r\nUpgrade: h2c"
    raw = f"POST {TARGET} HTTP/{version}\r\nHost: a\r\n{upgrade}\r\n{framing}\r\n".encode() + content
    body = BODY if content else b""
    closes = version == "1.0" or "close" in upgrade
    expected = [200] if closes else [200, 200]
    start = len(raw) - len(content)
    for cut in (*range(start - 50, start, 5), *range(start, len(raw) + 3, 1 + len(content) // 20), len(raw) * 2):
        pieces = [piece for piece in ((raw * 2)[:cut], (raw * 2)[cut:]) if piece]
        assert check(Sent(pieces, [body, body])) == expected, cut
    assert check(Sent([bytes([one]) for one in raw], [body])) == [200]


def test_what_would_be_a_tunnel_is_refused() -> None:
    """CONNECT has no body: what follows it would be anything."""
    assert exchange([b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + BODY]) == ([400], [])


def test_close_in_a_trailer() -> None:
    """After `Connection: close` in a trailer the connection is closed, and what follows is not read."""
    raw = f"POST {TARGET} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    raw += chunked(BODY, [7], trailers=("Connection: close",))
    assert exchange([raw * 2]) == ([200], [BODY])
