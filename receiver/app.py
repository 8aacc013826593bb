"""The composition root: makes the parts from the settings, starts them in order, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import uvloop

from receiver.database.database import Database
from receiver.journal.journal import Journal
from receiver.metrics import Metrics
from receiver.projector.projector import Projector
from receiver.server.certificate import Certificate
from receiver.server.limiter import Limits
from receiver.server.server import Server, create_server
from receiver.server.sockets import allow_connections, listen
from receiver.settings.settings import Settings
from receiver.systemd import READY, STOPPING, notify
from receiver.web.callbacks import Callbacks, Endpoint
from receiver.web.operations import operations_app

_SWITCH_INTERVAL = 0.0001  # seconds
_CERTIFICATE_POLL = 2  # seconds
_OPERATIONS_CONNECTIONS = 64
_GRACE = 5  # seconds for requests under way, and again for the journal to drain


class Receiver:
    """All parts of a running receiver. `now` gives POSIX seconds. Starting raises the parts' own errors."""

    def __init__(self, settings: Settings, *, now: Callable[[], float] = time.time) -> None:
        self.metrics = Metrics(endpoint.name for endpoint in settings.endpoints)
        self._certificate = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            self._certificate = Certificate(settings.tls_certificate, settings.tls_key, self.metrics)
        allow_connections(settings.max_connections)
        operations_socket = listen("operations_listen", *settings.operations_listen)
        self.database = Database(settings.database_url)
        grown = threading.Event()
        self.journal = Journal(settings.journal, settings.journal_max_bytes, self.metrics, grown)
        self.projector = Projector(self.journal, self.database, self.metrics, grown)
        callbacks = Callbacks(
            [Endpoint(one.name, one.live_event_type_callback_url, one.verifier()) for one in settings.endpoints],
            self.journal.append,
            self.metrics,
            max_body_bytes=settings.max_body_bytes,
            trusted_proxies=settings.trusted_proxies,
            now=now,
        )
        limits = Limits(
            settings.max_connections,
            settings.max_connections_per_address,
            settings.request_timeout,
            settings.trusted_proxies,
        )
        self._public = create_server(
            callbacks,
            "public",
            self.metrics,
            limits=limits,
            certificate=self._certificate,
            grace=_GRACE,
            handover=True,
        )
        operations = operations_app(self.metrics.registry, self.journal.check)
        few = Limits(_OPERATIONS_CONNECTIONS, _OPERATIONS_CONNECTIONS, settings.request_timeout)
        self._operations = create_server(operations, "operations", self.metrics, limits=few, grace=1)
        # Last: from here on clients come, also those of a receiver that this one is to take over from.
        self._sockets = [listen("listen", *settings.listen, shared=True), operations_socket]

    async def serve(self, on_started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, or a signal to end, then put away what is under way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        watching = loop.create_task(self._watch_certificate())
        self.projector.start()
        servers = (self._public, self._operations)
        running = [
            loop.create_task(_serve(server, [socket])) for server, socket in zip(servers, self._sockets, strict=True)
        ]
        # uvicorn has no event for having started.
        while not all(  # noqa: ASYNC110
            server.started or task.done() for server, task in zip(servers, running, strict=True)
        ):
            await asyncio.sleep(0.005)
        notify(READY)
        on_started()
        await running[0]
        await self.journal.flush()
        await asyncio.to_thread(self.projector.stop, _GRACE)
        self._operations.should_exit = True
        await running[1]
        watching.cancel()
        self.journal.close()
        self.database.close()

    def stop(self) -> None:
        """End in order; the second time, without waiting for requests under way."""
        notify(STOPPING)
        self._public.force_exit = self._public.should_exit
        self._public.should_exit = True

    def _reload(self) -> None:
        if self._certificate is not None:
            self._certificate.reload()

    async def _watch_certificate(self) -> None:
        while self._certificate is not None:
            await asyncio.sleep(_CERTIFICATE_POLL)
            self._certificate.reload_if_changed()


def run(settings: Settings, on_started: Callable[[], None]) -> None:
    """Serve until a signal to end."""
    # The projector's thread would keep the interpreter for 5 ms each time that a callback needs it.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    receiver = Receiver(settings)
    # Nor is all that was made until now looked through again and again for garbage: that took some 100 ms each time.
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(receiver.serve(on_started))


async def _serve(server: Server, sockets: Sequence[socket.socket]) -> None:
    await server.serve(sockets=list(sockets))
