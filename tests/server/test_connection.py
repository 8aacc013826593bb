from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from receiver.metrics import Metrics
from receiver.server.connection import Connection, State
from receiver.server.limiter import ConnectionLimiter, Limits

TIMEOUT = 30.0
HEAD_TIMEOUT = TIMEOUT / 3
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HANGING = GET.replace(b"/ ", b"/hang ")
HALF_HEAD = b"GET / HTTP/1.1\r\nHost:"
HALF_BODY = b"POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"
NO_HOST = b"GET / HTTP/1.1\r\n\r\n"


class CountingConnection(Connection):
    """A connection that knows how many bytes it has parsed."""

    parsed = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.parsed += len(data)


class Client(NamedTuple):
    """A client, and its connection as the server has it. What `/hang` is asked for is answered once `released`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: CountingConnection
    released: asyncio.Event

    async def send(self, raw: bytes, state: State) -> None:
        """Send, and wait for the state that this leads to."""
        parsed = self.connection.parsed + len(raw)
        self.writer.write(raw)
        async with asyncio.timeout(60):
            while self.connection.parsed < parsed or self.connection.state is not state:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.001)

    def deadline(self) -> float:
        """For how many seconds more, to the second, the connection is not overdue."""
        now = self.connection.loop.time()
        return next((after for after in range(100) if self.connection.is_overdue(now + after + 0.9)), math.inf)


@asynccontextmanager
async def connected(*, age: float = 0) -> AsyncIterator[Client]:
    """A client whose connection was accepted `age` seconds ago."""
    loop = asyncio.get_running_loop()
    released = asyncio.Event()
    limiter = ConnectionLimiter[Connection](Limits(request_timeout=TIMEOUT), "public", Metrics())
    made: list[CountingConnection] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["raw_path"] == b"/hang":
            await released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)

    def make() -> CountingConnection:
        made.append(CountingConnection(config, ServerState(), limiter, "127.0.0.1"))
        made[0]._since = loop.time() - age  # noqa: SLF001 (time passes only here)
        limiter.add(made[0], loop.time())
        return made[0]

    async with await loop.create_server(make, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            while not made:  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0.001)
            yield Client(reader, writer, made[0], released)
        finally:
            released.set()
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("raw", "state", "seconds"),
    [
        pytest.param(b"", State.HEAD, HEAD_TIMEOUT, id="nothing"),
        pytest.param(HALF_HEAD, State.HEAD, HEAD_TIMEOUT, id="half a header"),
        pytest.param(HALF_BODY, State.BODY, TIMEOUT, id="half a body"),
        pytest.param(GET, State.IDLE, TIMEOUT, id="answered"),
        pytest.param(GET + HALF_HEAD, State.HEAD, HEAD_TIMEOUT, id="half of the next header"),
        pytest.param(GET + HALF_BODY, State.BODY, TIMEOUT, id="half of the next body"),
        pytest.param(HANGING, State.ANSWERING, math.inf, id="being answered"),
        pytest.param(HANGING + HALF_HEAD, State.HEAD, math.inf, id="being answered, half of the next header sent"),
        pytest.param(HANGING + NO_HOST, State.CLOSING, math.inf, id="being answered, the next one malformed"),
        pytest.param(HANGING + HANGING, State.ANSWERING, math.inf, id="two to be answered"),
    ],
)
def test_each_state_has_its_time(raw: bytes, state: State, seconds: float) -> None:
    """What a client has sent decides what is waited for, and how long; while it waits for an answer, without end."""

    async def run() -> None:
        async with connected() as client:
            await client.send(raw, state)
            if raw.startswith(GET):
                assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")
            assert client.deadline() == pytest.approx(seconds - 1, abs=1)

    asyncio.run(run())


def test_a_deadline_runs_again_after_the_answer() -> None:
    """A client that sends half a header while it is answered has no more time for the rest, once it is answered."""

    async def run() -> None:
        async with connected() as client:
            await client.send(HANGING + HALF_HEAD, State.HEAD)
            client.released.set()
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")
            assert client.deadline() == pytest.approx(HEAD_TIMEOUT - 1, abs=1)

    asyncio.run(run())


def test_bytes_do_not_prolong_a_deadline() -> None:
    """The first request's time runs from the accept, whatever comes of it; a later one's from its first byte."""

    async def run() -> None:
        async with connected(age=5) as client:
            assert client.deadline() == pytest.approx(HEAD_TIMEOUT - 6, abs=1)
            await client.send(HALF_HEAD, State.HEAD)
            assert client.deadline() == pytest.approx(HEAD_TIMEOUT - 6, abs=1)
            await client.send(b" a\r\nContent-Length: 1\r\n\r\n", State.BODY)
            assert client.deadline() == pytest.approx(TIMEOUT - 6, abs=1)
            await client.send(b"{", State.IDLE)
            await client.send(HALF_HEAD, State.HEAD)
            assert client.deadline() == pytest.approx(HEAD_TIMEOUT - 1, abs=1)

    asyncio.run(run())


def test_an_idle_connection_is_closed_in_order() -> None:
    """At the end an idle connection is closed; one that is answered gets its answer, and is told that it closes."""

    async def run() -> None:
        async with connected() as idle, connected() as busy:
            await busy.send(HANGING, State.ANSWERING)
            for client in (idle, busy):
                client.connection.shutdown()
            assert await idle.reader.read() == b""
            busy.released.set()
            answer = await busy.reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
            assert busy.connection.state is State.CLOSING

    asyncio.run(run())
