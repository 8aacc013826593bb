from __future__ import annotations

import asyncio
import select
import socket
from contextlib import ExitStack

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver.metrics import Metrics
from receiver.server.limiter import Limits
from receiver.server.server import Server
from receiver.server.sockets import listen

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WAITING = 100


async def _answer(_request: Request) -> Response:
    return PlainTextResponse("here")


def server(listener: socket.socket, *, leave_queue: bool = False) -> Server:
    app = Starlette(routes=[Route("/", _answer)])
    return Server(app, listener, "public", Metrics(), limits=Limits(), leave_queue=leave_queue)


def connect(listener: socket.socket, stack: ExitStack) -> list[socket.socket]:
    """Clients that have sent a request and wait to be accepted."""
    address = listener.getsockname()
    clients = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(WAITING)]
    for client in clients:
        client.sendall(REQUEST)
    return clients


async def start_and_stop(stopping: Server) -> None:
    """Stop before the loop has a turn to accept."""
    async with stopping.serving(grace=60):
        pass


def test_connections_that_wait_at_the_end_are_answered() -> None:
    """Connections that are not accepted yet when the server stops are accepted, answered, and told that it closes."""
    with ExitStack() as stack:
        listener = listen("listen", "127.0.0.1", 0)
        clients = connect(listener, stack)
        asyncio.run(start_and_stop(server(listener)))
        answers = [client.recv(1000) for client in clients]
        assert all(answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer for answer in answers)


def test_a_request_under_way_at_the_end_is_answered() -> None:
    """A request that the application has when the server stops gets its answer, and is told that it is the last one."""

    async def run() -> bytes:
        begun, released = asyncio.Event(), asyncio.Event()

        async def slow(request: Request) -> Response:
            begun.set()
            await released.wait()
            return await _answer(request)

        listener = listen("listen", "127.0.0.1", 0)
        app = Starlette(routes=[Route("/", slow)])
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        async with Server(app, listener, "public", Metrics(), limits=Limits()).serving(grace=60):
            writer.write(REQUEST)
            await begun.wait()
            asyncio.get_running_loop().call_soon(released.set)  # which is after it has begun to stop
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    answer = asyncio.run(run())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer


def test_connections_that_wait_at_an_inherited_socket_are_left() -> None:
    """Connections that wait at a socket that stays open elsewhere are left to the next process, which answers them."""
    with ExitStack() as stack:
        kept = stack.enter_context(listen("listen", "127.0.0.1", 0))
        clients = connect(kept, stack)
        asyncio.run(start_and_stop(server(kept.dup(), leave_queue=True)))
        assert not select.select(clients, [], [], 0)[0]
        asyncio.run(start_and_stop(server(kept.dup())))
        assert all(client.recv(1000).startswith(b"HTTP/1.1 200") for client in clients)
