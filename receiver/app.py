"""The composition root: makes the parts of a receiver from the settings, and closes them in order however it ends."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial

import uvloop
from starlette.routing import Route
from starlette.types import ASGIApp

from receiver.journal.journal import Journal
from receiver.metrics import Metrics
from receiver.projector.feeder import Feeder
from receiver.rejections import Rejections, rejections_file
from receiver.server.certificate import Certificate
from receiver.server.limiter import Limits
from receiver.server.server import Server
from receiver.server.sockets import allow_connections, inherited, listen
from receiver.settings.settings import Settings
from receiver.systemd import READY, STOPPING, notify
from receiver.tools.doctor import advice
from receiver.web.callbacks import Callback, Rejector, public_app
from receiver.web.memory import BodyMemory
from receiver.web.operations import operations_app
from receiver.web.status.figures import Sources
from receiver.web.status.last_hour import LastHour
from receiver.web.status.routes import status_routes

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL = 0.0001  # seconds
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LARGE_BLOCK = 2**17  # bytes
_CERTIFICATE_POLL = 2  # seconds
_OPERATIONS_CONNECTIONS = 64
_GRACE = 5  # seconds for requests under way, and again for the journal to drain
_OPERATIONS_GRACE = 1  # seconds
_REJECTIONS_SHOWN = 5  # on the status page


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that takes callbacks: `settings` are those in force, `tasks` run for as long as it does."""

    settings: Settings
    public: Server
    certificate: Certificate | None
    tasks: Sequence[asyncio.Task[None]]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until `stop` is called, at most so many `seconds`; raise what one of the tasks failed with."""
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            awaited = {stopping, *self.tasks}
            done, _ = await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            stopping.cancel()

    def stop(self) -> None:
        """End in order; the second time, without waiting for requests under way."""
        notify(STOPPING)
        if self.stopping.is_set():
            self.public.is_forced = True
        self.stopping.set()

    def reload_certificate(self) -> None:
        """Use the certificate that the files hold now."""
        if self.certificate is not None:
            self.certificate.reload()


@asynccontextmanager
async def running(settings: Settings, *, now: Callable[[], float] = time.time) -> AsyncIterator[Receiver]:
    """A receiver that takes callbacks for as long as the block lasts. `now` gives POSIX seconds.

    Starting raises the parts' own errors. However it ends, what is open is closed in the opposite order: the public
    server, the journal's queue, the projector with the database, the operations server, the journal.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics(endpoint.name for endpoint in settings.endpoints)
        certificate = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            certificate = Certificate(settings.tls_certificate, settings.tls_key, metrics)
        allow_connections(settings.max_connections)
        operations_socket = stack.enter_context(listen("operations_listen", *settings.operations_listen))
        has_news = asyncio.Event()
        journal = Journal(settings.journal, settings.journal_max_bytes, metrics, has_news, settings.journal_keep)
        stack.enter_context(closing(journal))
        feeder = Feeder(journal, settings.database_url, settings.stream_stale_after, metrics, has_news)

        # The last step that can be refused: from here on clients are sent to this receiver.
        from_systemd = inherited()
        if from_systemd is not None:
            settings = replace(settings, listen=from_systemd.getsockname()[:2])
            logger.info("listening on the socket from systemd", extra={"address": settings.listen})
        public_socket = stack.enter_context(from_systemd or listen("listen", *settings.listen, shared=True))

        few = Limits(_OPERATIONS_CONNECTIONS, _OPERATIONS_CONNECTIONS, settings.request_timeout)
        rejections = Rejections(rejections_file(settings.journal), [one.name for one in settings.endpoints])
        tasks: list[asyncio.Task[None]] = []
        pages: list[Route] = []
        if settings.status_page:
            last_hour = LastHour(metrics, now)
            tasks.append(asyncio.create_task(last_hour.run()))
            stack.callback(tasks[-1].cancel)
            sources = Sources(
                settings=settings,
                metrics=metrics,
                last_hour=last_hour,
                check_journal=journal.check,
                database=lambda: feeder.database,
                rejections=partial(rejections.latest, _REJECTIONS_SHOWN),
                explain=partial(advice, endpoints=settings.endpoints, max_body_bytes=settings.max_body_bytes),
                now=now,
            )
            pages = status_routes(sources)
        operations = operations_app(metrics.registry, journal.check, pages)
        operations_server = Server(operations, operations_socket, "operations", metrics, limits=few)
        tasks.append(await stack.enter_async_context(operations_server.serving(_OPERATIONS_GRACE)))
        tasks.append(feeder.start())
        stack.push_async_callback(feeder.stop, _GRACE)
        stack.push_async_callback(journal.flush)
        tasks.append(asyncio.create_task(rejections.write()))
        stack.callback(tasks[-1].cancel)
        public_server = Server(
            _callbacks(settings, journal, metrics, rejections, now),
            public_socket,
            "public",
            metrics,
            limits=Limits(
                settings.max_connections,
                settings.max_connections_per_address,
                settings.request_timeout,
                settings.trusted_proxies,
            ),
            certificate=certificate,
            leave_queue=from_systemd is not None,
        )
        tasks.append(await stack.enter_async_context(public_server.serving(_GRACE)))
        if certificate is not None:
            tasks.append(asyncio.create_task(_watch(certificate)))
            stack.callback(tasks[-1].cancel)
        receiver = Receiver(settings, public_server, certificate, tasks)
        await receiver.wait(0)  # the tasks begin, and what fails at once fails the start
        yield receiver


def _callbacks(
    settings: Settings, journal: Journal, metrics: Metrics, rejections: Rejections, now: Callable[[], float]
) -> ASGIApp:
    rejector = Rejector(metrics, rejections, settings.trusted_proxies)
    memory = BodyMemory(settings.max_body_bytes)
    callbacks = (
        Callback(
            name=endpoint.name,
            url=endpoint.live_event_type_callback_url,
            verifier=endpoint.verifier(),
            append=journal.append,
            metrics=metrics,
            max_body_bytes=settings.max_body_bytes,
            memory=memory,
            rejector=rejector,
            now=now,
        )
        for endpoint in settings.endpoints
    )
    return public_app(callbacks, rejector, now)


async def _watch(certificate: Certificate) -> None:
    while True:
        await asyncio.sleep(_CERTIFICATE_POLL)
        certificate.reload_if_changed()


async def serve(settings: Settings, on_started: Callable[[Settings], None]) -> None:
    """Serve until a signal to end. `on_started` is called with the settings in force once callbacks are taken."""
    loop = asyncio.get_running_loop()
    async with running(settings) as receiver:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, receiver.stop)
        loop.add_signal_handler(signal.SIGHUP, receiver.reload_certificate)
        # What lives as long as the process is not searched for garbage again and again: that took some 100 ms.
        gc.freeze()
        notify(READY)
        on_started(receiver.settings)
        try:
            await receiver.wait()
        except Exception as error:
            logger.critical("a part failed, ending", extra={"problem": repr(error)})
            raise


def run(settings: Settings, on_started: Callable[[Settings], None]) -> None:
    """`serve` in an event loop of its own."""
    # The journal's thread would keep the interpreter for 5 ms each time that a callback needs it.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    # Give large blocks back to the system when they are freed: glibc would soon keep them. Other C libraries do so.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, on_started))
