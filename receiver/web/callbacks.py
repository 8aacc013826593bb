"""The public listener: verifies each callback, puts it into the journal, and answers. Never parses a body.

Pure ASGI. Before a request is authentic nothing is spent on it: its body is not even read. After that it is answered
200 only once it is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver.addresses import Network, client_address
from receiver.delivery import Delivery, NotDurableError
from receiver.metrics import Metrics
from receiver.protocol.signature import SignatureError, StaleSignatureError, Verified, Verifier
from receiver.protocol.url import callback_path
from receiver.rejections import NO_ENDPOINT, Rejections
from receiver.web.memory import BodyMemory, TokenBucket

logger = logging.getLogger(__name__)

Append = Callable[[Delivery], Awaitable[None]]
Header = tuple[bytes, bytes]

HEALTH_PATH = "/healthz"
_LONGEST_PATH = 100  # bytes, in the log
_STALE_EXTRA_BYTES = 1024  # that a stale delivery counts for beside its body
# Answers: status, body, and headers beside those of JSON.
_ACCEPTED = (200, b'{"status":"accepted"}')
_ACCEPTED_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(_ACCEPTED[1])
_METHOD_NOT_ALLOWED = (405, b'{"error":"method not allowed"}', (b"allow", b"POST"))
_UNAUTHORIZED = (401, b'{"error":"unauthorized"}')
_REJECTIONS: dict[str, tuple[int, bytes] | tuple[int, bytes, Header]] = {  # by reason; others are _UNAUTHORIZED
    "too_large": (413, b'{"error":"too large"}'),
    "not_durable": (503, b'{"error":"unavailable"}', (b"retry-after", b"5")),
}


class _RejectedError(Exception):
    """The callback is not accepted. `signed_at` is when it was signed, where its signature is right."""

    def __init__(self, reason: str, signed_at: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason  # one of the metric's
        self.signed_at = signed_at


class Rejector:
    """Counts, logs and notes each rejected request; `trusted_proxies` may say whose it is."""

    def __init__(self, metrics: Metrics, rejections: Rejections, trusted_proxies: Sequence[Network]) -> None:
        self._metrics = metrics
        self._rejections = rejections
        self._trusted_proxies = trusted_proxies

    def reject(self, endpoint: str, reason: str, scope: Scope, at: float, signed_at: float | None = None) -> None:
        """Take down a request that `endpoint` rejects at `at`, POSIX seconds."""
        client = client_address((scope["client"] or ["?"])[0], scope["headers"], self._trusted_proxies)
        self._metrics.callbacks_rejected_total.labels(endpoint, reason).inc()
        details = {"endpoint": endpoint, "reason": reason, "client": client}
        if endpoint == NO_ENDPOINT:
            details["path"] = scope["raw_path"][:_LONGEST_PATH].decode("latin-1")
        logger.warning("callback rejected", extra=details)
        self._rejections.note(endpoint, reason, scope, client=client, at=at, signed_at=signed_at)


def public_app(callbacks: Iterable[Callback], rejector: Rejector, now: Callable[[], float] = time.time) -> ASGIApp:
    """The public listener's ASGI application: the path of each callback, GET on ``/healthz``, and nothing else.

    A POST to another path is rejected as a callback: it may be one that was registered wrongly.
    """
    by_path: dict[bytes, ASGIApp] = {callback.path: callback for callback in callbacks}
    # A redirect would lead to whatever host the client has named.
    others = Router([Route(HEALTH_PATH, health, methods=["GET"])], redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # By the path as received: never by the Host header.
        raw_path: bytes = scope["raw_path"]
        path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
        callback = by_path.get(path)
        if callback is None and scope["method"] == "POST":
            rejector.reject(NO_ENDPOINT, "unknown_path", scope, now())
        await (callback or others)(scope, receive, send)

    return app


class Callback:
    """The ASGI application of the endpoint `name`, which is registered as `url`.

    `append` puts a delivery on disk; `memory` is shared by all endpoints; `now` gives POSIX seconds.
    """

    def __init__(  # noqa: PLR0913 (the journal, the metrics, and the settings)
        self,
        *,
        name: str,
        url: str,
        verifier: Verifier,
        append: Append,
        metrics: Metrics,
        max_body_bytes: int,
        memory: BodyMemory,
        rejector: Rejector,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = callback_path(url)
        self._name = name
        self._verifier = verifier
        self._append = append
        self._metrics = metrics
        # To look up labels takes longer than to count: what every accepted callback counts is looked up once.
        self._accepted = metrics.callbacks_total.labels(name, "accepted")
        self._matches: dict[tuple[str, str], Counter] = {}
        self._max_body_bytes = max_body_bytes
        self._memory = memory
        self._rejector = rejector
        self._now = now
        # Stale deliveries are kept in case it is our clock that is wrong; but with one old signature anybody can send
        # any number of them.
        self._stale_bytes = TokenBucket(16 * 2**20, 1024, time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "POST":
            await _answer(send, *_METHOD_NOT_ALLOWED)
            return
        started = time.perf_counter()
        try:
            await self._accept(scope, receive)
        except _RejectedError as rejected:
            self._metrics.callbacks_total.labels(self._name, "rejected").inc()
            self._rejector.reject(self._name, rejected.reason, scope, self._now(), rejected.signed_at)
            await _answer(send, *_REJECTIONS.get(rejected.reason, _UNAUTHORIZED))
        else:
            self._accepted.inc()
            extensions = scope.get("extensions")
            if extensions is not None:
                extensions["accepted"]()  # from now on the server counts the connection as authenticated
            if extensions is None or not extensions["answer"](_ACCEPTED_HEAD, _ACCEPTED[1]):
                await _answer(send, *_ACCEPTED)
        self._metrics.callback_duration_seconds.observe(time.perf_counter() - started)

    async def _accept(self, scope: Scope, receive: Receive) -> None:
        """Return when the delivery is on disk; raise `_RejectedError` where it will not be."""
        received_at = self._now()
        verified, quarantine_reason = self._verify(scope, received_at)
        try:
            length = self._most_length(scope["headers"])
            # Before any of the body is read.
            if quarantine_reason is not None:
                await self._keep_stale(length, receive, received_at, verified, quarantine_reason)
            self._take_memory(length)
            try:
                body = await self._read_body(receive)
                await self._append(Delivery(self._name, received_at, verified.sent_at, verified.time_text, body))
            finally:
                self._memory.give_back(length)
        except (NotDurableError, asyncio.CancelledError) as error:
            # It is cancelled where the server ends and waits no longer: uvicorn would answer 500.
            raise _RejectedError("not_durable", verified.sent_at) from error
        except _RejectedError as rejected:
            rejected.signed_at = verified.sent_at
            raise

    async def _keep_stale(
        self, length: int, receive: Receive, received_at: float, verified: Verified, quarantine_reason: str
    ) -> NoReturn:
        """Keep a delivery that is not accepted, within bounds. What was read of it counts, also where it has no end."""
        if not self._stale_bytes.take(length + _STALE_EXTRA_BYTES):
            raise _RejectedError(quarantine_reason)
        unread = length

        async def receive_counted() -> Message:
            nonlocal unread
            message = await receive()
            unread -= len(message.get("body", b""))
            return message

        try:
            if self._memory.take(length, is_stale=True):
                try:
                    body = await self._read_body(receive_counted)
                    delivery = Delivery(
                        self._name, received_at, verified.sent_at, verified.time_text, body, quarantine_reason
                    )
                    with contextlib.suppress(NotDurableError):  # which the journal has logged
                        await self._append(delivery)
                finally:
                    self._memory.give_back(length)
        finally:
            self._stale_bytes.give_back(max(0, unread))
        raise _RejectedError(quarantine_reason)

    def _verify(self, scope: Scope, now: float) -> tuple[Verified, str | None]:
        """What the signature says, and why the delivery belongs in quarantine, if it does."""
        quarantine_reason = None
        try:
            verified = self._verifier.verify(scope["query_string"], scope["headers"], now)
        except StaleSignatureError as error:
            verified, quarantine_reason = error.verified, error.reason
        except SignatureError as error:
            raise _RejectedError(error.reason, getattr(error, "signed_at", None)) from None
        if verified.form:
            self._metrics.signed_time_skew_seconds.set(now - verified.sent_at)
            match = verified.form, verified.key
            if match not in self._matches:
                self._matches[match] = self._metrics.signature_matches_total.labels(self._name, *match)
            self._matches[match].inc()
        return verified, quarantine_reason

    def _take_memory(self, length: int) -> None:
        if not self._memory.take(length, is_stale=False):
            raise NotDurableError("too much is being received at once")

    def _most_length(self, headers: list[Header]) -> int:
        """How long the body may be: as declared, or up to the limit where it comes in chunks."""
        length = 0
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                return self._max_body_bytes
        if length > self._max_body_bytes:
            raise _RejectedError("too_large")
        return length

    async def _read_body(self, receive: Receive) -> bytes:
        """The body as sent; nothing is ever inflated. Past the limit nothing more is kept of it."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _RejectedError("disconnected")  # uvicorn drops the answer
            chunk: bytes = message.get("body", b"")
            if len(body) + len(chunk) > self._max_body_bytes:
                raise _RejectedError("too_large")
            if not message.get("more_body", False):
                return bytes(body + chunk) if body else chunk
            body += chunk


async def _answer(send: Send, status: int, body: bytes, *more_headers: Header) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more_headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def health(_request: Request) -> Response:
    """Answer that the process lives."""
    return JSONResponse({"status": "ok"})
