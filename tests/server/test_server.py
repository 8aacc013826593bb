from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from receiver.metrics import Metrics
from receiver.server.limiter import Limits
from receiver.server.server import create_server
from receiver.server.sockets import ListenError, allow_connections, listen, stop_new_connections

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WAITING = 100
COMING = 20


async def _answer(_request: Request) -> Response:
    return PlainTextResponse("here")


def test_connections_that_wait_at_the_end_are_served() -> None:
    """Who is connected already, but not accepted yet, when the server ends, is accepted and answered first."""

    async def serve() -> list[bytes]:
        listener = listen("listen", "127.0.0.1", 0)
        server = create_server(
            Starlette(routes=[Route("/", _answer)]), "public", Metrics(), limits=Limits(), grace=60, handover=False
        )
        server.config.load()
        await server.startup([listener])
        with contextlib.ExitStack() as stack:
            # Nothing here gives the loop a turn to accept.
            clients = [
                stack.enter_context(socket.create_connection(listener.getsockname(), timeout=60))
                for _ in range(WAITING)
            ]
            for client in clients:
                client.sendall(REQUEST)
            await server.shutdown()
            return [client.recv(1000) for client in clients]

    answers = asyncio.run(serve())
    assert all(answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer for answer in answers)


def test_a_listener_that_is_given_up() -> None:
    """Who has come is still accepted, who comes now is not refused but waits, until another listener takes over."""
    with closing(listen("listen", "127.0.0.1", 0, shared=True)) as old:
        address = old.getsockname()
        with closing(socket.create_connection(address)):
            stop_new_connections(old)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = old.accept()
            accepted.close()
        with closing(listen("listen", *address, shared=True)), ThreadPoolExecutor(COMING) as clients:
            # Enough that some come to each of the two.
            coming = [clients.submit(socket.create_connection, address, 60) for _ in range(COMING)]
            wait(coming, return_when=FIRST_COMPLETED)
            old.close()
            for client in coming:
                client.result().close()


def test_connections_need_files() -> None:
    """As many files may be open as connections need; a setting that the system does not allow is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        allow_connections(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 228
        with pytest.raises(ListenError, match=rf"max_connections: .* allows 228 to {hard}: .* to 100 or less"):
            allow_connections(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
