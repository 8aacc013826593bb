"""uvicorn under both listeners. Connections are accepted here, so that number and time are bounded from the start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from receiver.metrics import Metrics
from receiver.server.certificate import Certificate
from receiver.server.connection import Connection
from receiver.server.limiter import Admission, Limits
from receiver.server.sockets import is_exhausted, stop_new_connections

logger = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 64  # then it is the turn of those that are connected
_SWEEP_TICKS = 5  # of uvicorn's 0.1 seconds
_EXHAUSTED_PAUSE = 0.2  # seconds
_TLS_FAREWELL = 1.0  # seconds for the client's close_notify
_HANDOVER = 0.25  # seconds: what is on its way through the network when the listener closes still arrives
_LINGER = 1.0  # seconds for an idle client to send what it was just about to


class Server(uvicorn.Server):
    """uvicorn with an accept of its own. It leaves signals to the application, which has two of these to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        admission: Admission,
        certificate: Certificate | None,
        *,
        grace: float,
        handover: float,
    ) -> None:
        super().__init__(config)
        self._admission = admission
        self._certificate = certificate
        self._grace = grace
        self._handover = handover
        self._listeners: list[socket.socket] = []
        self._opening: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept."""
        self._listeners = sockets or []
        for listener in self._listeners:
            self._watch(listener)
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Drop who is overdue, now and then."""
        if counter % _SWEEP_TICKS == 0:
            self._admission.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (uvicorn's)
        """Accept whoever is on the way already, answer what is under way, and only then let go."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            stop_new_connections(listener)
        await self._wait(lambda: False, self._handover)
        for listener in self._listeners:
            loop.remove_reader(listener)
            while self._accept(listener):
                pass
            listener.close()
        for guest in self._admission.guests:
            guest.finish(loop.time() + _LINGER)
        await self._wait(lambda: not self._admission.guests and not self.server_state.tasks, self._grace)
        if tasks := list(self.server_state.tasks):
            logger.warning("requests under way given up", extra={"requests": len(tasks)})
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_LINGER)

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until `condition`, for at most `seconds`, and not at all when forced; deadlines are kept meanwhile."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition() and loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
            self._admission.sweep(loop.time())

    # From here on: a connection's way in.

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Take some of those that wait; whether there may be more."""
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                plain, peer = listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if is_exhausted(error):
                    self._pause(listener, error)
                return False
            self._enter(plain, peer[0])
        return True

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        logger.error("cannot accept", extra={"problem": error.strerror})
        loop.remove_reader(listener)
        loop.call_later(_EXHAUSTED_PAUSE, self._watch, listener)

    def _enter(self, plain: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._admission.has_room(host, loop.time()):
            plain.close()
            return
        plain.setblocking(False)
        connection = Connection(self.config, self.server_state, loop, self._admission, host)
        self._admission.enter(connection)
        connection.opening = loop.create_task(self._open(plain, connection))
        self._opening.add(connection.opening)
        connection.opening.add_done_callback(self._opening.discard)

    async def _open(self, plain: socket.socket, connection: Connection) -> None:
        """Shake hands. How long that takes is the connection's deadline."""
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": self._admission.limits.request_timeout,
                "ssl_shutdown_timeout": _TLS_FAREWELL,
            }
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: connection, plain, **tls)
        except ssl.SSLError:
            self._admission.report("handshake", connection.client_host)
        except OSError:
            pass  # the client has gone
        finally:
            if not connection.is_open:
                self._admission.leave(connection)
                plain.close()


def create_server(  # noqa: PLR0913 (one place that makes one)
    app: ASGIApp,
    listener: str,
    metrics: Metrics,
    *,
    limits: Limits,
    certificate: Certificate | None = None,
    grace: float,
    handover: bool = False,
) -> Server:
    """A server for `app`, to be run with `serve(sockets=…)`; `listener` is its name in the metrics.

    Requests under way at its end get `grace` seconds; before that, with `handover`, connections on their way come in.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        # uvicorn's own access log prints the query, and with it hwSecret.
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
    admission = Admission(limits, listener, metrics)
    return Server(config, admission, certificate, grace=grace, handover=_HANDOVER if handover else 0)
