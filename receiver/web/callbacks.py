"""The public endpoint: verify, journal, answer. Pure ASGI, and nothing here reads what a body says.

Before a request is authentic, nothing is spent on it; its body is not even read. After that, it is answered 200 only
when it is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.addresses import Network, client_address
from receiver.delivery import Delivery, NotDurableError
from receiver.metrics import REJECTIONS, Metrics
from receiver.protocol.signature import SignatureError, StaleSignatureError, Verified, Verifier
from receiver.protocol.url import callback_path

logger = logging.getLogger(__name__)

Append = Callable[[Delivery], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HEALTH_PATH = "/healthz"
_JSON: Headers = [(b"content-type", b"application/json")]
_ACCEPTED = b'{"status":"accepted"}'
_UNAUTHORIZED = b'{"error":"unauthorized"}'
_TOO_LARGE = b'{"error":"too large"}'
_NOT_DURABLE = b'{"error":"unavailable"}'
_METHOD_NOT_ALLOWED = b'{"error":"method not allowed"}'
_RETRY_AFTER: Headers = [(b"retry-after", b"5")]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One registered URL: its `name`, and who may post to it."""

    name: str
    url: str
    verifier: Verifier


class Allowance:
    """How many bytes of stale deliveries are kept: `capacity` at once, then `per_second`.

    They are kept in case it is our clock that is wrong; but who has seen one old signature can make any number.
    """

    def __init__(self, capacity: float, per_second: float, clock: Callable[[], float]) -> None:
        self._capacity = self._left = capacity
        self._per_second = per_second
        self._clock = clock
        self._at = clock()

    def take(self, size: int) -> bool:
        """Whether `size` bytes more are kept."""
        now = self._clock()
        self._left = min(self._capacity, self._left + (now - self._at) * self._per_second)
        self._at = now
        if size > self._left:
            return False
        self._left -= size
        return True


class Callbacks:
    """The public listener's ASGI application: POST on each endpoint's path, GET on ``/healthz``, and nothing else.

    `append` puts a delivery on disk; `trusted_proxies` are believed whose request it is; `now` gives POSIX seconds.
    """

    def __init__(  # noqa: PLR0913 (the journal, the metrics, and the settings)
        self,
        endpoints: Iterable[Endpoint],
        append: Append,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        trusted_proxies: Sequence[Network] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._callbacks: dict[bytes, ASGIApp] = {
            callback_path(endpoint.url): _Callback(endpoint, append, metrics, max_body_bytes, trusted_proxies, now)
            for endpoint in endpoints
        }
        self._elsewhere = Starlette(routes=[Route(HEALTH_PATH, _health, methods=["GET"])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the endpoint by the path as received: never by the Host header."""
        raw_path: bytes = scope["raw_path"]
        path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
        await self._callbacks.get(path, self._elsewhere)(scope, receive, send)


class _Rejected(Exception):  # noqa: N818 (an answer, not a fault)
    """An answer other than 200."""

    def __init__(self, reason: str, status: int, body: bytes, headers: Headers | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.body = body
        self.headers = headers or []


class _Callback:
    """One endpoint."""

    def __init__(  # noqa: PLR0913, PLR0917 (what Callbacks has, for one)
        self,
        endpoint: Endpoint,
        append: Append,
        metrics: Metrics,
        max_body_bytes: int,
        trusted_proxies: Sequence[Network],
        now: Callable[[], float],
    ) -> None:
        self._name = endpoint.name
        self._verifier = endpoint.verifier
        self._append = append
        self._max_body_bytes = max_body_bytes
        self._trusted_proxies = trusted_proxies
        self._now = now
        self._stale_allowance = Allowance(16 * 2**20, 1024, time.monotonic)
        self._duration = metrics.callback_duration_seconds
        self._skew = metrics.signed_time_skew_seconds
        self._accepted = metrics.callbacks_total.labels(self._name, "accepted")
        self._rejected = metrics.callbacks_total.labels(self._name, "rejected")
        self._reasons = {reason: metrics.callbacks_rejected_total.labels(self._name, reason) for reason in REJECTIONS}
        self._metrics = metrics
        self._matches: dict[tuple[str, str], Counter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _answer(send, 405, _METHOD_NOT_ALLOWED, [(b"allow", b"POST")])
            return
        started = time.perf_counter()
        try:
            await self._accept(scope, receive)
        except _Rejected as rejected:
            self._rejected.inc()
            self._reasons[rejected.reason].inc()
            details = {"endpoint": self._name, "reason": rejected.reason, "client": self._client(scope)}
            logger.warning("callback rejected", extra=details)
            if rejected.status:
                await _answer(send, rejected.status, rejected.body, rejected.headers)
        else:
            self._accepted.inc()
            if (extensions := scope.get("extensions")) is not None:
                extensions["accepted"]()  # the connection is not one of those that are turned out
            await _answer(send, 200, _ACCEPTED)
        self._duration.observe(time.perf_counter() - started)

    async def _accept(self, scope: Scope, receive: Receive) -> None:
        """Return when the delivery is on disk; raise `_Rejected` where it will not be."""
        received_at = self._now()
        verified, quarantine_reason = self._verify(scope, received_at)
        try:
            body = await self._read_body(scope["headers"], receive)
            delivery = Delivery(self._name, received_at, verified.sent_at, verified.time_text, body, quarantine_reason)
            if quarantine_reason is not None:
                await self._keep_stale(delivery)
                raise _Rejected(quarantine_reason, 401, _UNAUTHORIZED)
            await self._append(delivery)
        except NotDurableError as error:
            raise _Rejected("not_durable", 503, _NOT_DURABLE, _RETRY_AFTER) from error
        except asyncio.CancelledError:
            # The server ends and does not wait any longer. uvicorn would answer 500.
            raise _Rejected("not_durable", 503, _NOT_DURABLE, _RETRY_AFTER) from None

    def _client(self, scope: Scope) -> str:
        peer = (scope["client"] or ["?"])[0]
        return client_address(peer, scope["headers"], self._trusted_proxies)

    def _verify(self, scope: Scope, now: float) -> tuple[Verified, str | None]:
        """Who sent it, and why it is not to be believed if it is not."""
        quarantine_reason = None
        try:
            verified = self._verifier.verify(scope["query_string"], scope["headers"], now)
        except StaleSignatureError as error:
            verified, quarantine_reason = error.verified, error.reason
        except SignatureError as error:
            raise _Rejected(error.reason, error.status_hint, _UNAUTHORIZED) from None
        if verified.form:
            self._skew.set(now - verified.sent_at)
            self._match(verified).inc()
        return verified, quarantine_reason

    def _match(self, verified: Verified) -> Counter:
        bound = self._matches.get((verified.form, verified.key))
        if bound is None:
            bound = self._metrics.signature_matches_total.labels(self._name, verified.form, verified.key)
            self._matches[verified.form, verified.key] = bound
        return bound

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        """The body as sent; nothing is ever inflated. Past the limit nothing more is kept of it."""
        declared = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(declared) > self._max_body_bytes:
            raise _Rejected("too_large", 413, _TOO_LARGE)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Rejected("disconnected", 0, b"")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise _Rejected("too_large", 413, _TOO_LARGE)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _keep_stale(self, delivery: Delivery) -> None:
        if self._stale_allowance.take(len(delivery.body) + 1024):
            with contextlib.suppress(NotDurableError):  # which the journal has logged; it is not accepted anyway
                await self._append(delivery)


async def _answer(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*_JSON, length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})
