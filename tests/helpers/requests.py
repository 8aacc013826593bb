"""Requests as bytes, well formed and not, in generated combinations and pieces."""

from __future__ import annotations

import re
from typing import NamedTuple

from hypothesis import strategies as st

# Each alone, or with others, asks for something that could change where a body ends or whether one is read.
ODD_HEADERS = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Connection: upgrade",
    "Connection: Upgrade, close",
    "Connection: close",
    "Connection: keep-alive",
    "connection: keep-alive, Upgrade",
    "Upgrade: h2c",
    "upgrade: websocket",
    "Upgrade: TLS/1.0, HTTP/2.0",
    "Upgrade:",
    "Expect: 100-continue",
    "Expect: nothing",
    "TE: trailers, chunked",
    "Trailer: Connection",
    "Content-Encoding: gzip",
    "Content-Type: multipart/form-data; boundary=x",
    "Content-Length: 0",
    "Content-Length: 1",
    "Content-Length: 1, 1",
    "Transfer-Encoding: chunked",
    "transfer-encoding:  CHUNKED",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: \tchunked",
    "Transfer-Encoding: chunked;x=y",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: close",
    "Host: b",
    "X-Folded: a\r\n b",
)
TRAILERS = ("Connection: close", "Connection: upgrade", "Upgrade: h2c", "Content-Length: 1", "Host: b", "X: y")


class Sent(NamedTuple):
    """Requests for one connection, in pieces, and the body of each."""

    pieces: list[bytes]
    bodies: list[bytes]


def chunked(body: bytes, sizes: list[int], extension: str = "", trailers: tuple[str, ...] = ()) -> bytes:
    """`body` in chunks of `sizes`, the last of which is repeated."""
    raw = b""
    while body:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        raw += b"%x%b\r\n%b\r\n" % (len(body[:size]), extension.encode(), body[:size])
        body = body[size:]
    return raw + "\r\n".join(["0", *trailers, "", ""]).encode()


@st.composite
def requests(draw: st.DrawFn, target: str, marker: bytes = b"") -> Sent:
    """Up to four POSTs to `target`; the body of each begins with `marker` and its number."""
    raw, bodies = b"", []
    for number in range(draw(st.integers(1, 4))):
        body = b"%b %d " % (marker, number) + draw(st.binary(max_size=40) | st.sampled_from([b"0\r\n\r\n", b"GET / "]))
        framing = draw(st.sampled_from(["length", "length", "chunks"]))
        headers = [*draw(st.lists(st.sampled_from(ODD_HEADERS), max_size=3)), "Host: a"]
        if framing == "length":
            headers.append(f"Content-Length: {len(body)}")
            content = body
        else:
            headers.append("Transfer-Encoding: chunked")
            trailers = tuple(draw(st.lists(st.sampled_from(TRAILERS), max_size=2)))
            sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
            content = chunked(body, sizes, draw(st.sampled_from(["", ";a=b"])), trailers)
        version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
        lines = [f"POST {target} HTTP/{version}", *draw(st.permutations(headers)), "", ""]
        raw += "\r\n".join(lines).encode() + content
        bodies.append(body)
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return Sent([piece for piece in pieces if piece], bodies)


def statuses(received: bytes) -> list[int]:
    """Of the answers that were received, in order, without `100 Continue`; their bodies hold no such line."""
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    return [status for status in found if status != 100]
