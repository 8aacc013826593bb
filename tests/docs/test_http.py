"""The answers of docs/reference/http.md, against those of a real receiver."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery import Delivery, NotDurableError
from receiver.metrics import Metrics
from receiver.protocol.signature import AuthType, Verifier, sign
from receiver.rejections import Rejections
from receiver.web.callbacks import Callback, Rejector
from receiver.web.memory import BodyMemory
from tests.helpers.pages import rows, section
from tests.helpers.receiver import KEY, SAMPLES, Process, running

PAGE = "docs/reference/http.md"
SAMPLE = SAMPLES["SHOOT_SCRIPT_SWITCH"]
PATH = "/callbacks/metastudio"
PUBLIC = {cells[0]: cells[1] for cells in rows(section(PAGE, "Public listener"))}
OPERATIONS = {cells[0]: cells[1] for cells in rows(section(PAGE, "Operations listener"))}


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver with short deadlines."""
    with running(tmp_path_factory.mktemp("receiver"), RECEIVER_REQUEST_TIMEOUT="3") as process:
        yield process
        assert process.stop() == 0


def request(target: str, *headers: str, method: str = "POST", body: bytes = SAMPLE) -> bytes:
    """A whole request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def requests(receiver: Process) -> dict[str, list[bytes]]:
    """What to send for each line of the table, by the line's first words."""
    right, stale = receiver.target(), receiver.target(time.time() - 3600)
    no_host = request(right).replace(b"Host: localhost\r\n", b"")
    conflicting = request(right, "Transfer-Encoding: chunked")
    folded = request(right, "A: b", " c")
    bare = request(right).replace(b"Host: localhost\r\n", b"Host: localhost\n")
    return {
        "signature right, time within": [request(right)],
        "signature or time wrong": [
            request(PATH),
            request(f"{PATH}?hwSecret={'0' * 64}&hwTime=66df9308"),
            request(f"{PATH}?hwSecret=z&hwTime=z"),
            request(f"{right}&hwTime=5f"),
        ],
        "signature right, time outside": [request(stale)],
        "body over `max_body_bytes`": [request(right, body=b" " * (2**20 + 1))],
        "another method": [request(right, method="PUT")],
        "another path": [request("/elsewhere")],
        "`GET /healthz`": [request("/healthz", method="GET", body=b"")],
        "no `Host` or several": [no_host, request(right, "Host: other"), conflicting, folded, bare],
        "more than 64 KiB or 100": [
            request(right, f"A: {'a' * 2**16}"),
            request(right, *(f"A{number}: a" for number in range(101))),
        ],
    }


ELSEWHERE = {"the journal is full": "below, without a full disk", "too slow": "below"}


def test_each_line_is_tried(receiver: Process) -> None:
    """Each line of the table has a test of its own here."""
    tried = [*requests(receiver), *ELSEWHERE]
    assert [line for line in PUBLIC if not any(line.startswith(words) for words in tried)] == []
    assert len(PUBLIC) == len(tried)


@pytest.mark.parametrize("line", [one for one in PUBLIC if not one.startswith(tuple(ELSEWHERE))])
def test_answers(receiver: Process, line: str) -> None:
    """What the table says is what is answered, to the byte, and where it says so the connection is closed."""
    (sent,) = (raw for words, raw in requests(receiver).items() if line.startswith(words))
    answer = PUBLIC[line]
    for raw in sent:
        received = receiver.exchange(raw, answers=2 if "closed" in answer else 1)
        head, _, body = received.partition(b"\r\n\r\n")
        assert ("closed" in answer) == (b"connection: close" in head.lower())
        assert head.startswith(b"HTTP/1.1 " + answer[:3].encode()), raw[:200]
        if (shown := re.search(r"`(\{.*?\})`", answer)) is not None:
            assert body == shown[1].encode()


def test_too_slow(receiver: Process) -> None:
    """After a third of request_timeout for the header, or all of it for the whole request, it closes without a word."""
    assert PUBLIC[next(line for line in PUBLIC if line.startswith("too slow"))] == "closed without an answer"
    for raw, least in ((b"POST / HTTP/1.1\r\n", 0.9), (request(receiver.target())[:-1], 2.9)):
        began = time.monotonic()
        with receiver.connect() as connection:
            connection.sendall(raw)
            try:
                received = connection.recv(1)
            except ConnectionResetError:
                received = b""
        assert received == b""
        assert time.monotonic() - began > least


def test_not_durable() -> None:
    """Where the journal takes nothing, the answer is the table's 503, with the time after which to try again."""
    (answer,) = (PUBLIC[line] for line in PUBLIC if line.startswith("the journal is full"))
    url = f"https://localhost{PATH}"
    sent: list[Any] = []

    async def append(_delivery: Delivery) -> None:
        raise NotDurableError("full")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": SAMPLE}

    async def send(message: Any) -> None:
        sent.append(message)

    verifier = Verifier(url, AuthType.MSS_A, (KEY,))
    query = sign(url, KEY, time.time()).url.partition("?")[2].encode()
    scope = {"type": "http", "method": "POST", "raw_path": PATH.encode(), "query_string": query, "headers": []}
    metrics = Metrics()
    callback = Callback(
        name="default",
        url=url,
        verifier=verifier,
        append=append,
        metrics=metrics,
        max_body_bytes=2**20,
        memory=BodyMemory(2**20),
        rejector=Rejector(metrics, Rejections(Path("/nowhere/rejections.json"), ["default"]), ()),
    )
    asyncio.run(callback({**scope, "client": None}, receive, send))
    start, body = sent
    shown = re.fullmatch(r"(\d+) `(.*)` with `Retry-After: (\d+)`", answer)
    assert shown is not None
    assert start["status"] == int(shown[1])
    assert body["body"] == shown[2].encode()
    assert dict(start["headers"])[b"retry-after"] == shown[3].encode()


def test_operations(receiver: Process) -> None:
    """Each path of the operations listener answers as its line says."""
    for line, answer in OPERATIONS.items():
        got = receiver.operations(line.strip("`").removeprefix("GET "))
        assert got.status == int(answer[:3])
        if (shown := re.search(r"`(\{.*?\})`", answer)) is not None:
            assert got.body == shown[1].encode()
    pages = {"`GET /`", "`GET /jobs/ID`", "`GET /status.css`"}  # which are not there unless status_page is set
    assert set(OPERATIONS) == {"`GET /metrics`", "`GET /healthz`", "`GET /readyz`"} | pages


def test_the_public_listener_has_no_metrics(receiver: Process) -> None:
    """Nothing but the table's paths is on the public listener."""
    assert receiver.request("GET", "/metrics").status == 404
    assert receiver.request("GET", "/readyz").status == 404
