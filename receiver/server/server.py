"""The HTTP server of one listener: accepts connections, keeps their deadlines, and stops in order.

uvicorn provides the protocol (`Connection`). Accepting is done here, so that the number of connections and their time
are limited from the accept on, before the TLS handshake.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from receiver.metrics import Metrics
from receiver.server.certificate import Certificate
from receiver.server.connection import Connection, State
from receiver.server.limiter import Class, ConnectionLimiter, Limits

logger = logging.getLogger(__name__)

_MAX_ACCEPTS = 64  # in a row, before the connections that are open get their turn
_MAX_OPENINGS = 4  # of connections from unknown addresses likewise: a TLS handshake takes most of a millisecond
_TICK = 0.5  # seconds between two looks at the deadlines
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # no file or memory for a connection
_EXHAUSTED_PAUSE = 0.2  # seconds
_TLS_CLOSE_TIMEOUT = 1.0  # seconds for the client's close_notify
_LINGER = 1.0  # seconds for an idle client to send the request that it was about to send when the server stops


class Server:
    """Serves `app` to the clients of `listener`, whose name in the metrics is `name`.

    `leave_queue` is for a listener that stays open in another process: at the end, the connections that wait to be
    accepted are left to the next process that accepts there.
    """

    def __init__(  # noqa: PLR0913 (one place that makes one)
        self,
        app: ASGIApp,
        listener: socket.socket,
        name: str,
        metrics: Metrics,
        *,
        limits: Limits,
        certificate: Certificate | None = None,
        leave_queue: bool = False,
    ) -> None:
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            # uvicorn's own access log prints the query, and with it hwSecret.
            access_log=False,
            log_config=None,
            proxy_headers=False,
        )
        self._listener = listener
        self._limiter = ConnectionLimiter[Connection](limits, name, metrics)
        self._certificate = certificate
        self._leave_queue = leave_queue
        self._state = ServerState()
        # From unknown addresses, the oldest first.
        self._unopened: deque[tuple[socket.socket, Connection]] = deque()
        self.is_forced = False  # whether the end waits for nothing

    @asynccontextmanager
    async def serving(self, grace: float) -> AsyncIterator[asyncio.Task[None]]:
        """Accept connections until the block ends, then give requests under way at most `grace` seconds.

        The task that keeps the deadlines is given to the block. It ends only if it fails.
        """
        self._config.load()
        self._watch()
        ticking = asyncio.create_task(self._tick())
        try:
            yield ticking
        finally:
            ticking.cancel()
            await self._stop(grace)

    async def _stop(self, grace: float) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        while not self._leave_queue and self._accept():
            pass
        self._listener.close()
        self._state.default_headers.append((b"connection", b"close"))
        await self._wait_for_answers(_LINGER)
        for connection in list(self._limiter.connections):
            connection.shutdown()
        await self._wait_for_answers(grace - _LINGER)
        if tasks := list(self._state.tasks):
            logger.warning("requests under way given up", extra={"requests": len(tasks)})
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_LINGER)
        for connection in list(self._limiter.connections):
            connection.end_drain()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # In place: the requests under way use the list too.
            self._state.default_headers[:] = [(b"date", formatdate(usegmt=True).encode())]
            self._limiter.drop_overdue(loop.time())
            await asyncio.sleep(_TICK)

    async def _wait_for_answers(self, seconds: float) -> None:
        """Until no request can come any more and all are answered; the deadlines are kept meanwhile."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # What is written to a connection that is closing reaches the client without our waiting for it.
        while self._state.tasks or any(one.state is not State.CLOSING for one in self._limiter.connections):
            if loop.time() > end or self.is_forced:
                return
            await asyncio.sleep(0.02)
            self._limiter.drop_overdue(loop.time())

    # How a connection is made.

    def _watch(self) -> None:
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> bool:
        """Accept some of the connections that wait; whether there may be more."""
        for _ in range(_MAX_ACCEPTS):
            try:
                plain, peer = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                return False
            self._add(plain, peer[0])
        return True

    def _pause(self, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        logger.error("cannot accept", extra={"problem": error.strerror})
        loop.remove_reader(self._listener)
        loop.call_later(_EXHAUSTED_PAUSE, self._watch)

    def _add(self, plain: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        plain.setblocking(False)
        connection = Connection(self._config, self._state, self._limiter, host)
        connection.cancel_opening = plain.close
        counted_as = self._limiter.add(connection, loop.time())
        if counted_as is None:
            plain.close()
        elif counted_as is Class.KNOWN:
            self._open(plain, connection)
        else:
            if not self._unopened:
                loop.call_soon(self._open_some)
            self._unopened.append((plain, connection))

    def _open_some(self) -> None:
        """Open the oldest of those from unknown addresses that were not dropped meanwhile.

        A few in each turn of the loop, so that however many come, what is open and what is known waits for a few only.
        """
        opened = 0
        while self._unopened and opened < _MAX_OPENINGS:
            plain, connection = self._unopened.popleft()
            if connection in self._limiter.connections:
                self._open(plain, connection)
                opened += 1
        if self._unopened:
            asyncio.get_running_loop().call_soon(self._open_some)

    def _open(self, plain: socket.socket, connection: Connection) -> None:
        opening = asyncio.get_running_loop().create_task(self._shake_hands(plain, connection))
        connection.cancel_opening = opening.cancel
        # Not at the end of the task: it may be cancelled before it begins.
        opening.add_done_callback(lambda _: self._close_unopened(plain, connection))

    def _close_unopened(self, plain: socket.socket, connection: Connection) -> None:
        if connection.state is State.HANDSHAKE:
            self._limiter.remove(connection)
            plain.close()

    async def _shake_hands(self, plain: socket.socket, connection: Connection) -> None:
        """Make the transport. How long that takes is limited by the connection's deadline."""
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": self._limiter.limits.request_timeout,
                "ssl_shutdown_timeout": _TLS_CLOSE_TIMEOUT,
            }
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: connection, plain, **tls)
        except ssl.SSLError:
            self._limiter.report("handshake", connection.client_host)
        except OSError:
            pass  # the client has gone
