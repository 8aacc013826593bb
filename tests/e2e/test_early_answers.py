"""How connections end: after answers that come before the body, and when clients end their side."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.helpers.receiver import SAMPLES, Process, running, wait_until

SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
PROXIED = "203.0.113.9"
LIMIT = 2**20  # of a body: the default of max_body_bytes
MOST_DRAINED = 32 * 2**20  # of one connection, with what the kernel takes for it


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "TLS"])
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver that would wait for the rest of a request for longer than a test may take."""
    limits = {"RECEIVER_REQUEST_TIMEOUT": "600", "RECEIVER_TRUSTED_PROXIES": "127.0.0.9"}
    with running(tmp_path_factory.mktemp("receiver"), tls=request.param, **limits) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


def head(receiver: Process, status: int, framing: str) -> bytes:
    """A request that is answered with `status` before its body was read."""
    line = {
        401: "POST /callbacks/metastudio",
        404: "POST /elsewhere",
        405: "PUT /callbacks/metastudio",
        413: f"POST {receiver.target()}",
    }[status]
    return f"{line} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode()


def read_until_closed(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("status", [401, 404, 405, 413])
def test_an_early_answer_is_the_last(receiver: Process, status: int) -> None:
    """An answer before the body was read says that the connection is closed, and it is, without the body."""
    with receiver.connect() as connection:
        connection.sendall(head(receiver, status, "Content-Length: 99999999"))
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer


@pytest.mark.parametrize("status", [401, 404, 405])
def test_a_body_without_an_end_is_not_read(receiver: Process, status: int) -> None:
    """A client that goes on sending chunks of one byte after its answer is cut off, and has seen the answer."""
    answer = b""
    with receiver.connect() as connection:
        connection.sendall(head(receiver, status, "Transfer-Encoding: chunked"))
        answer += connection.recv(65536)
        connection.settimeout(0.01)

        def is_cut_off() -> bool:
            try:
                connection.sendall(b"1\r\nx\r\n" * 10)
                return not connection.recv(65536)
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_cut_off, "the end")
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_body_without_an_end_costs_no_core(receiver: Process) -> None:
    """One client who goes on sending chunks of one byte after its answers takes little of the processor."""
    chunks = b"1\r\nx\r\n" * 10_000
    began, used, sent = time.monotonic(), receiver.processor_seconds(), 0
    for status in (401, 404, 405):
        with receiver.connect() as connection, suppress(OSError):
            connection.sendall(head(receiver, status, "Transfer-Encoding: chunked"))
            while True:
                sent += connection.send(chunks)
    assert sent < 3 * MOST_DRAINED
    assert receiver.processor_seconds() - used < (time.monotonic() - began) / 4


def test_an_accepted_body_in_chunks_of_one_byte(receiver: Process) -> None:
    """A body of the greatest length in chunks of one byte is stored whole; four times as long costs not much more."""
    took = []
    for size in (LIMIT // 4, LIMIT):
        body = SAMPLE + b" " * (size - len(SAMPLE))
        used = receiver.processor_seconds()
        raw = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        assert receiver.exchange(head(receiver, 413, "Transfer-Encoding: chunked") + raw).startswith(b"HTTP/1.1 200 ")
        took.append(max(receiver.processor_seconds() - used, 0.05))
        assert receiver.rows("SELECT 1 FROM events WHERE CAST(body AS BLOB) = ?", body)
    assert took[1] < 10 * took[0]


def test_a_large_body_does_not_hide_the_answer(receiver: Process) -> None:
    """A client that reads only when it has sent all of its body sees the early answer."""
    body = b"x" * 2**20
    for _ in range(10):
        with receiver.connect() as connection:
            connection.sendall(head(receiver, 401, f"Content-Length: {len(body)}"))
            connection.sendall(body)
            assert read_until_closed(connection).startswith(b"HTTP/1.1 401 ")


def test_a_whole_request_that_is_refused_keeps_its_connection(receiver: Process) -> None:
    """Where nothing is left unread, the connection stays."""
    wrong = head(receiver, 401, "Content-Length: 1") + b"x"
    right = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(SAMPLE)}\r\n\r\n".encode() + SAMPLE
    received = receiver.exchange(wrong + right, answers=2)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401", b"200"]


def test_a_half_closed_client_is_answered(receiver: Process) -> None:
    """A client that ends its side after its requests, as `nc -N` does, gets all answers, then the end."""
    if receiver.tls:
        return  # there an end is for both sides
    right = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(SAMPLE)}\r\n\r\n".encode() + SAMPLE
    for rest in (b"", b"POST /half HTTP/1.1\r\n", right[:-1]):
        with receiver.connect() as connection:
            connection.sendall(right * 3 + rest)
            connection.shutdown(socket.SHUT_WR)
            assert read_until_closed(connection).count(b"HTTP/1.1 200 ") == 3


def test_close_in_a_trailer(receiver: Process) -> None:
    """`Connection: close` behind a body closes too."""
    raw = f"POST {receiver.target()} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    raw += b"%x\r\n%b\r\n0\r\nConnection: close\r\n\r\n" % (len(SAMPLE), SAMPLE)
    with receiver.connect() as connection:
        connection.sendall(raw)
        answer = read_until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize("path", ["/healthz/", "/callbacks/metastudio/", "/readyz/", "//evil.example/healthz/"])
def test_nothing_redirects(receiver: Process, path: str) -> None:
    """A path with a slash too many is no path, and nobody is sent to the host that a client names."""
    answer = receiver.request("GET", path, headers={"Host": "evil.example"})
    assert (answer.status, "location" in answer.headers) == (404, False)
    assert receiver.operations(path).status == 404


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_continue_for_http_1_0(receiver: Process, version: str) -> None:
    """Only a client of HTTP/1.1 gets `100 Continue`; the other is answered once its body is there."""
    with receiver.connect() as connection:
        lines = f"Host: a\r\nExpect: 100-continue\r\nContent-Length: {len(SAMPLE)}\r\nConnection: close"
        connection.sendall(f"POST {receiver.target()} HTTP/{version}\r\n{lines}\r\n\r\n".encode())
        if version == "1.1":
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(SAMPLE)
        assert read_until_closed(connection).startswith(b"HTTP/1.1 200 ")


def test_malformed_behind_a_proxy(receiver: Process) -> None:
    """A malformed request behind a trusted proxy is logged with the client that the proxy has named."""
    line, named = f"POST {receiver.target()} HTTP/1.1\r\n", f"X-Forwarded-For: {PROXIED}\r\n"
    raws = [
        f"{line}{named}Host: a\r\nno header\r\n\r\n",
        f"{line}{named}\r\n",
        f"{line}Host: a\r\n{named}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]
    for raw in raws:
        with socket.create_connection(("127.0.0.1", receiver.port), 60, ("127.0.0.9", 0)) as plain:
            connection = receiver.trust.wrap_socket(plain, server_hostname="localhost") if receiver.tls else plain
            connection.sendall(raw.encode())
            assert read_until_closed(connection).startswith(b"HTTP/1.1 400 ")
            connection.close()
    lines = [json.loads(line) for line in receiver.log.splitlines()]
    malformed = [line for line in lines if line.get("reason") == "malformed" and line["event"] == "connection dropped"]
    assert [line["client"] for line in malformed] == [PROXIED] * len(raws)


def test_ready_while_silent_connections_come(tmp_path: Path) -> None:
    """`/readyz` and `/metrics` answer while silent connections come to the operations listener without an end."""
    with running(tmp_path, tls=False) as process, ExitStack() as silent:
        for _ in range(50):
            for _ in range(8):
                address = ("127.0.0.1", process.operations_port)
                silent.enter_context(socket.create_connection(address, timeout=60))
            assert process.operations("/readyz").status == 200
        assert process.metric("connections_dropped_total", "operations", "limit") > 0
