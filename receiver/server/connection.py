"""One HTTP connection: uvicorn's protocol on httptools with deadlines, size limits and strict framing.

A connection has no timer: it knows its deadline, and the server looks at all connections twice a second. llhttp, the
parser inside httptools, itself refuses bare LF, folded lines, repeated Content-Length, and Content-Length beside
Transfer-Encoding; what it lets pass is refused here.

An `Upgrade` is taken as if it were not there (RFC 9110, 7.8). To the parser such a message ends with its header, so its
body is parsed as that of another message, whose header is made here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from enum import Enum
from typing import cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from receiver.addresses import client_address
from receiver.server.limiter import ConnectionLimiter

_MAX_HEAD_BYTES = 2**16
_MAX_HEADERS = 100
_MAX_PIPELINED = 32
_READ_AHEAD = 2**14  # bytes
_DRAIN_READS = 50  # of at most 256 KiB, each after a pause; then it is closed, whatever the client still sends
_DRAIN_PAUSE = 0.02  # seconds
_MALFORMED = b"400 Bad Request"
_TOO_LARGE = b"431 Request Header Fields Too Large"


class State(Enum):
    """What a connection waits for, and the share of `request_timeout` that this may take.

    A request's header and body count from the same moment: the accept for the first request, its first byte for later
    ones. So no trickle of bytes prolongs anything.
    """

    HANDSHAKE = "the end of the TLS handshake", 1 / 3
    HEAD = "the first request, or the rest of a later one's header", 1 / 3
    BODY = "the rest of a body", 1
    ANSWERING = "the application's answer to a whole request", math.inf
    IDLE = "the next request", 1
    CLOSING = "the last answer to be read, and the client to close too; what it still sends is not looked at", 1

    def __init__(self, _waits_for: str, share: float) -> None:
        self.share = share


class _AnswerTransport:
    """The transport as uvicorn writes an answer to it: the head waits for the body, so that both go out as one."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Send `data`, with the head before it; a head itself waits. `100 Continue` is one by itself."""
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        """Send a head that no body follows, as in the answer to HEAD."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close once everything is sent."""
        self.flush()
        self._close()


class _RefusedError(Exception):
    """The request is malformed or too large."""


class Connection(HttpToolsProtocol):
    """A connection that was just accepted from `client_host`.

    Output that the client leaves unread has a deadline of its own, `request_timeout`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        limiter: ConnectionLimiter[Connection],
        client_host: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(config, server_state, {}, _loop=loop)
        self.client_host = client_host
        self._since = self._unread_since = loop.time()
        self.state = State.HANDSHAKE
        self.cancel_opening: Callable[[], object]  # before there is a transport; set by the server
        self._limiter = limiter
        self._proxy = client_host if limiter.is_proxy(client_host) else None
        self._request_timeout = limiter.limits.request_timeout
        self._refusal = _MALFORMED
        self._head_bytes = 0
        self._unparsed_bytes = 0  # received since the last whole header, piece of a body, or request
        self._keeps_alive = False  # whether the connection may stay open after the request that is being received
        self._is_upgrade = False  # whether the parser takes the message that it is at to end with its header
        self._makes_head = False  # whether the parser is given a header that is made here
        self._has_ended = False  # whether the client sends nothing more, and waits for answers
        self._under_way: RequestResponseCycle | None = None  # the request that the application has
        self._answer_transport: _AnswerTransport
        self._extensions = {"accepted": self._authenticate, "answer": self._answer}  # for the application to call

    # For the limiter and the server.

    def drop(self, reason: str) -> None:
        """Close at once; `reason` is one of the metric's."""
        self._limiter.report(reason, self.client_host)
        self._limiter.remove(self)
        if self.state is State.HANDSHAKE:
            self.cancel_opening()
        else:
            self.transport.abort()

    def waiting_time(self, now: float) -> float:
        """For how many seconds the client has been waited for; 0 while it waits for an answer."""
        return 0 if self._is_answering() else now - self._since

    def is_overdue(self, now: float) -> bool:
        """Whether the client has not sent, or not read, what it should have by `now`."""
        if self.state is not State.HANDSHAKE:
            if not self.transport.get_write_buffer_size():
                self._unread_since = now
            elif now - self._unread_since > self._request_timeout:
                return True
        return self.waiting_time(now) > self.state.share * self._request_timeout

    def shutdown(self) -> None:
        """Close now in an orderly way, or after the answer that is under way."""
        if self.state is State.HANDSHAKE:
            self._limiter.remove(self)
            self.cancel_opening()
            return
        self._keeps_alive = False
        super().shutdown()
        if self.transport.is_closing():
            self._wait_for(State.CLOSING)

    def end_drain(self) -> None:
        """Close now if it is only kept open so that the client can read its answer."""
        if self.state is State.CLOSING:
            self.transport.close()

    def _authenticate(self) -> None:
        self._limiter.authenticate(self, self.loop.time())

    def _wait_for(self, state: State) -> None:
        self.state = state
        self._since = self.loop.time()

    def _is_answering(self) -> bool:
        """Whether a whole request is with the application. The client may be sending further ones meanwhile."""
        cycle = self._under_way
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    # Called by the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Wait for the first header, in what is left of its time."""
        super().connection_made(transport)
        if self.scheme == "https":  # its transport reads ahead, by default 256 KiB
            transport.set_read_buffer_limits(_READ_AHEAD)  # type: ignore[attr-defined] # as asyncio's and uvloop's have it
        self._answer_transport = _AnswerTransport(transport, self._close_after_answer)
        self.state = State.HEAD

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection, and tell the application: uvicorn tells it of the latest request only."""
        self._limiter.remove(self)
        if self._under_way is not None:
            self._under_way.disconnected = True
            self._under_way.message_event.set()
        super().connection_lost(exc)
        self._release()

    def _release(self) -> None:
        """Refer to nothing that refers to this connection, so that it goes now, not when circles are looked for.

        With TLS there are 100 KiB of buffers to it. The application has what it needs of its request.
        """
        self.pipeline.clear()
        self.scope = self.cycle = self._under_way = None  # type: ignore[assignment] # uvicorn's have no value before
        self._extensions = {}
        self._answer_transport = _AnswerTransport(self.transport, self.transport.close)

    def eof_received(self) -> bool:  # type: ignore[override] # as asyncio has it
        """Answer a client that has ended its side, if it sent a whole request; whether the transport stays open.

        Over TLS it cannot: there an end is for both sides.
        """
        self._has_ended = self._is_answering() and self.scheme == "http"
        if self.pipeline and self.pipeline[0][0].more_body:  # whose rest never comes
            self.pipeline.popleft()
        return self._has_ended

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and refuse what is malformed or too large."""
        if self.state is State.CLOSING:
            self.flow.pause_reading()
            return
        self._unparsed_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._unparsed_bytes > _MAX_HEAD_BYTES:
                self._refusal = _TOO_LARGE
                self._refuse()

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """Have a parser go on with the body of the message whose header was just read, or with the next one."""
        framing = [
            b"%b: %b\r\n" % header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self._is_upgrade = False
        self._makes_head = True
        self.parser = httptools.HttpRequestParser(self)  # the old one may be at the end of the connection
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))

    def _refuse(self) -> None:
        """Read no more; answer the requests before the one that is refused, then that, and close."""
        host = self.client_host
        if self._proxy is not None:
            host = client_address(self._proxy, self.headers or (), self._limiter.limits.trusted_proxies)
        self._limiter.report("malformed", host)
        self._wait_for(State.CLOSING)
        if self.pipeline and self.pipeline[0][0].more_body:  # it is this one's body that is malformed
            self.pipeline.popleft()
        elif not self.pipeline and not self._is_answering():
            self._answer_refused()

    def _answer_refused(self) -> None:
        if self._under_way is not None and not self._under_way.response_complete:  # this is its answer
            self._under_way.disconnected = True
            self._under_way.waiting_for_100_continue = False  # nothing comes after the last answer
            self._under_way.message_event.set()
        head = b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(head % self._refusal)
        self._drain_and_close()

    def _close_after_answer(self) -> None:
        if self._under_way is not None and self._under_way.more_body:
            self._drain_and_close()
        else:
            self.transport.close()

    def _drain_and_close(self) -> None:
        """Close when the client has closed, or soon: closed at once, it might be reset before it reads the answer."""
        self._wait_for(State.CLOSING)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._drain(_DRAIN_READS)

    def _drain(self, reads: int) -> None:
        # One read at a time, after a pause: so it costs little however small the pieces are that the client sends.
        if self.transport.is_closing():
            return
        if not reads:
            self.transport.close()
            if self.scheme == "https":  # it would read on, without a pause, until the client says that it closes too
                self.loop.call_later(_DRAIN_PAUSE, self.transport.abort)
            return
        self.flow.resume_reading()
        self.loop.call_later(_DRAIN_PAUSE, self._drain, reads - 1)

    # Called by the parser, in this order for each request.

    def on_message_begin(self) -> None:
        """Start a request, and the time for its header."""
        if self._makes_head:
            return
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item] # narrower than ASGI's
        self._head_bytes = 0
        if self.state is not State.HEAD:  # else it is the first request, whose time runs since the accept
            self._wait_for(State.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; ignore a trailer, which comes after the headers were checked."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refusal = _TOO_LARGE
            raise _RefusedError
        if self.state is State.HEAD:
            super().on_header(name, value.rstrip(b" \t"))  # llhttp leaves the blanks behind it, which are no part of it

    def on_headers_complete(self) -> None:
        """Check the header as a whole, and hand the request to the application.

        Unless the rest comes while it is answered, the answer is the connection's last: nobody is to make us read on.
        """
        if self._makes_head:
            self._makes_head = False
            return
        self.state = State.BODY
        self._unparsed_bytes = 0
        self._check_head()
        if self._proxy is not None:
            self.client_host = client_address(self._proxy, self.headers, self._limiter.limits.trusted_proxies)
            self._limiter.identify(self, self.client_host, self.loop.time())
        self._is_upgrade = self.parser.should_upgrade()
        super().on_headers_complete()
        self._keeps_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False

    def _check_head(self) -> None:
        if len(self.headers) > _MAX_HEADERS or len(self.url) + self._head_bytes > _MAX_HEAD_BYTES:
            self._refusal = _TOO_LARGE
            raise _RefusedError
        version = self.parser.get_http_version()
        hosts = sum(name == b"host" for name, _ in self.headers)
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if version == "1.1":
            is_proper = hosts == 1 and codings in ([], [b"chunked"])
        else:  # HTTP/1.0 needs no Host and has no chunks
            is_proper = version == "1.0" and hosts <= 1 and not codings
            self.expect_100_continue = False  # which it does not know (RFC 9110, 10.1.1)
        # What follows CONNECT would be a tunnel's bytes, and no body.
        if not is_proper or self.parser.get_method() == b"CONNECT" or len(self.pipeline) >= _MAX_PIPELINED:
            raise _RefusedError

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._under_way = cycle
        cycle.transport = cast("asyncio.Transport", self._answer_transport)
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the answer, unless it was given before the body was read."""
        if self._is_upgrade:
            return
        self._unparsed_bytes = 0
        if self.state is State.CLOSING:
            return
        self._wait_for(State.ANSWERING)
        if self.cycle.response_started:  # with `Connection: close`
            return
        # Not after `Connection: close` in a trailer either: the parser reads no further.
        self.cycle.keep_alive = self._keeps_alive and self.parser.should_keep_alive()
        super().on_message_complete()

    def _answer(self, head: bytes, body: bytes) -> bool:
        """Answer the request under way with 200, as uvicorn would but for its checks, which take longer than all else.

        `head` are whole header lines. False where the answer has to go the usual way.
        """
        cycle = self._under_way
        if cycle is None or cycle.disconnected or cycle.response_started or self.flow.write_paused:
            return False
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        if len(lines) > 1 or not cycle.keep_alive:  # the server ends: the second says that it closes
            return False
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"HTTP/1.1 200 OK\r\n%b%b\r\n%b" % (b"".join(lines), head, body))
        cycle.message_event.set()
        cycle.on_response()
        return True

    # Called when the application has given its answer.

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        self._answer_transport.flush()
        cycle = self._under_way
        if cycle is None or not cycle.keep_alive or self.transport.is_closing():
            self._wait_for(State.CLOSING)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.state is State.CLOSING:
            self._answer_refused()
        elif self._has_ended:
            self.transport.close()
        elif self.state is State.ANSWERING:
            self._wait_for(State.IDLE)
