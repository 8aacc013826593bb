"""One connection: uvicorn's protocol on httptools, with deadlines, caps and a strict look at framing.

Nothing here has a timer: each connection knows until when its client has time, and one sweep looks at all of them.
llhttp, the parser inside httptools, itself refuses bare LF, folded lines, repeated Content-Length, and Content-Length
beside Transfer-Encoding; what it lets pass is refused here.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from receiver.server.limiter import Admission

_MOST_HEAD_BYTES = 2**16
_MOST_HEADERS = 100
_MOST_PIPELINED = 32
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class _RefusedError(Exception):
    """What the client sends is no proper request."""


class Connection(HttpToolsProtocol):
    """A client from `client_host`, accepted at `since` on `loop`'s clock.

    Of the limits' `request_timeout`, counted from the accept or from a later request's first byte, a third is for the
    TLS handshake and the header, all of it for the whole request. As long a connection may be idle, or leave what it is
    answered unread.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        loop: asyncio.AbstractEventLoop,
        admission: Admission,
        client_host: str,
    ) -> None:
        super().__init__(config, server_state, {}, _loop=loop)
        self.client_host = client_host
        self.since = loop.time()
        self.is_open = False
        self.opening: asyncio.Task[None] | None = None  # the TLS handshake
        self._admission = admission
        self._request_time = admission.limits.request_timeout
        self._head_time = self._request_time / 3
        self._latest = float("inf")
        self._waits_since = self._unread_since = self.since
        self._reading = False
        self._in_head = True
        self._ending = self._malformed = False
        self._status = 400
        self._hosts = 0
        self._head_bytes = 0
        self._unused_bytes = 0  # received, and nothing whole was made of them yet
        self._under_way: RequestResponseCycle | None = None  # the one that is answered now
        self._is_stranger = True
        self._extensions = {"accepted": self._accepted}  # for the application to call

    def drop(self, reason: str) -> None:
        """End it at once; `reason` is one of the metric's."""
        if not self._ending:
            self._admission.report(reason, self.client_host)
        self._admission.leave(self)
        self._give_up_answer()
        if self.is_open:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def waits(self, now: float) -> float:
        """For how many seconds its client has been waited for; 0 while the client waits for an answer."""
        return now - self._waits_since if self._reading or not self._is_answering() else 0

    def is_overdue(self, now: float) -> bool:
        """Whether the client has not sent, or not read, what it should have by `now`."""
        if self.is_open:
            if not self.transport.get_write_buffer_size():
                self._unread_since = now
            elif now - self._unread_since > self._request_time:
                return True
        waits = self.waits(now)
        return waits > (self._head_time if self._in_head else self._request_time) or (waits > 0 and now > self._latest)

    def finish(self, latest: float) -> None:
        """Close after the next answer, or at `latest` if no request comes."""
        self._ending = True
        self._latest = latest
        if self._is_answering():
            self.cycle.keep_alive = False

    def _is_answering(self) -> bool:
        # There is none before the first request.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _give_up_answer(self) -> None:
        if self._under_way is not None:
            self._under_way.disconnected = True
            self._under_way.message_event.set()

    def _accepted(self) -> None:
        if self._is_stranger:
            self._is_stranger = False
            self._admission.recognize(self)

    # From here on: called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Start to listen to the client."""
        super().connection_made(transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back the place."""
        self._admission.leave(self)
        self._give_up_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and refuse what is no proper request."""
        if self._malformed:
            return
        self._unused_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # there is nothing to upgrade to
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._unused_bytes > _MOST_HEAD_BYTES:
                self._status = 431
                self._refuse()

    def _refuse(self) -> None:
        """Answer what came before, then this, and close."""
        self._admission.report("malformed", self.client_host)
        self._malformed = True
        if self.pipeline and self.pipeline[0][0].more_body:  # it is this one's body that is malformed
            self.pipeline.popleft()
        elif not self.pipeline and (not self._is_answering() or self.cycle.more_body):
            self._answer_refused()

    def _answer_refused(self) -> None:
        head = b"HTTP/1.1 %d %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (self._status, _REASONS[self._status]))
        self.transport.close()

    # From here on: called by the parser, in this order, for each request.

    def on_message_begin(self) -> None:
        """Start a request, and the time for its header."""
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item] # narrower than ASGI's
        self._reading = self._in_head = True
        self._hosts = self._head_bytes = 0
        if self.cycle is not None:  # the first one's time runs since the accept
            self._waits_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless it is a trailer: those came after what was checked."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._status = 431
            raise _RefusedError
        if not self._in_head:
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise _RefusedError
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the header as a whole, and hand over the request."""
        self._in_head = False
        self._unused_bytes = 0
        self._check_head()
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if len(self.headers) > _MOST_HEADERS or len(self.url) + self._head_bytes > _MOST_HEAD_BYTES:
            self._status = 431
            raise _RefusedError
        if version == "1.1":
            proper = self._hosts == 1
        else:  # 1.0 knows neither; others are none of HTTP's that are spoken here
            proper = version == "1.0" and self._hosts <= 1 and b"transfer-encoding" not in dict(self.headers)
        if not proper or len(self.pipeline) >= _MOST_PIPELINED:
            raise _RefusedError

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._under_way = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._unused_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """From now on the answer is what is waited for."""
        self._reading = False
        self._unused_bytes = 0
        self._waits_since = self.loop.time()
        super().on_message_complete()

    # From here on: called when an answer is written.

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it."""
        self.server_state.total_requests += 1
        if not self._reading:
            self._waits_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._malformed:
            self._answer_refused()
