"""Cases for the fuzzers: each is made whole and right by what is known of its structure, and then, mostly, broken."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any, NamedTuple

from tests.fuzz.oracle import Registration, secrets
from tests.helpers.receiver import SAMPLES

NOW = 1_725_928_200.0  # POSIX seconds; cases are signed at this time, so that those of a corpus stay fresh
TOLERANCE = 300.0
MAX_BODY_BYTES = 4096
TRUSTED = "127.0.0.0/8"

_KEYS = ("0123456789abcdefThis-Is-The-Key", "the key before")
_HOST = "https://callbacks.example.com"
REGISTRATIONS = (
    Registration("plain", f"{_HOST}/callbacks/plain", "MSS_A", _KEYS),
    Registration("query", f"{_HOST}/callbacks/a%2Fb//%E5%95%86?z=%7E1&a=%2f+x&z=0&empty=&flag", "MSS_A", _KEYS[:1]),
    Registration("headers", f"{_HOST}/callbacks/headers?room=7&account=1", "MSS_A_HEAD", _KEYS[:1]),
    Registration("open", f"{_HOST}/hook?token=0123456789abcdef", "NONE"),
)
# What has a meaning for some parser on the way.
_TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b"\x7f", b"\xff", b"\xc2\xa0", b":", b";", b",", b"#"),
    *(
        b"&",
        b"=",
        b"?",
        b"%",
        b"%00",
        b"%2f",
        b"%68wSecret",
        b"hwsecret=",
        b"hwTime=1",
        b"&hwSecret=",
        b"+",
        b"..",
        b"//",
    ),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"content-length: 5, 5\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: xchunked\r\n"),
    *(b"Transfer-Encoding:\x0bchunked\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    *(b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"Host: a\r\n", b"Host:\r\n", b" folded\r\n", b"X\r\n"),
    *(
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"GET ",
        b"HEAD ",
        b"CONNECT ",
        b"OPTIONS * ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    ),
    *(b"http://a/", b"0\r\n\r\n", b"0;\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"0x1\r\n", b"1_0"),
    *(
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b"{",
        b"}",
        b"null",
        b"\xef\xbb\xbf",
    ),
    *(b"for=", b"for=127.0.0.1", b'for="[::1]:80"', b"127.0.0.1", b"::ffff:127.0.0.1", b"fe80::1%eth0", b"1" * 5000),
    *("\u202e".encode(), "\u2028".encode(), "\uff15".encode(), b"\x1b[31m", b"\xed\xa0\x80", b"[", b"]", b"@"),
]


class Case(NamedTuple):
    """What is put in. `is_right` says that it was made whole and was not broken."""

    data: bytes
    is_right: bool


def broken(random: Random, data: bytes) -> bytes:
    """`data` with one to four changes that take no regard of what it means."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice((1, 1, 2, 8, 64)))
        match random.randrange(8):
            case 0 | 1:
                data = data[:at] + random.choice(_TOKENS) + data[at:]
            case 2:
                data = data[:at] + random.choice(_TOKENS) + data[end:]
            case 3:
                data = data[:at] + data[end:]
            case 4:
                data = data[:at] + random.randbytes(1) + data[at + 1 :]
            case 5:
                lines = data.split(b"\r\n")
                lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
                data = b"\r\n".join(lines)
            case 6:
                data = data[:at] + data[at:end] * random.choice((2, 3, 300)) + data[end:]
            case _:
                # At a line's end, where a header belongs.
                lines = data.split(b"\r\n")
                lines.insert(random.randrange(1, len(lines) + 1), random.choice(_TOKENS).removesuffix(b"\r\n"))
                data = b"\r\n".join(lines)
    return data


def _perhaps_broken(random: Random, data: bytes, *, is_right: bool) -> Case:
    if random.random() < 0.35:
        return Case(data, is_right)
    return Case(broken(random, data), is_right=False)


# Signatures.


class _Signed(NamedTuple):
    query: bytes
    headers: list[tuple[bytes, bytes]]
    is_right: bool


def _signed(random: Random, registration: Registration) -> _Signed:
    """The query and headers of a request that the registration's own sender would make, or nearly so."""
    own = registration.query
    if registration.auth_type == "NONE":
        return _Signed(own, [], is_right=True)
    ago = random.choice((0, 0, 0, 0, 0, 0, 300, -300, 301, -301, 4000, -4000))
    is_right = abs(ago) <= TOLERANCE
    time_text = f"{random.choice((1, 1000)) * int(NOW - ago):x}"
    secret = random.choice(secrets(registration, time_text))
    match random.randrange(12):
        case 0:
            secret, is_right = f"{random.getrandbits(256):064x}", False
        case 1:
            time_text, is_right = f"{int(time_text, 16) + 1:x}", False
        case 2:
            secret = secret.upper()
        case 3:
            time_text = "1"  # stale for everybody, signed right
            secret, is_right = random.choice(secrets(registration, time_text)), False
    if registration.auth_type == "MSS_A_HEAD":
        names = random.choice(((b"x-hw-mss-secret", b"x-hw-mss-time"), (b"X-Hw-Mss-Secret", b"X-HW-MSS-TIME")))
        return _Signed(own, list(zip(names, (secret.encode(), time_text.encode()), strict=True)), is_right)
    pairs = [f"hwSecret={secret}".encode(), f"hwTime={time_text}".encode()]
    random.shuffle(pairs)
    parts = [own, *pairs] if own else pairs
    if random.random() < 0.2:  # beside each other is usual, in front is possible
        parts = [pairs[0], *([own] if own else []), pairs[1]]
    return _Signed(b"&".join(parts), [], is_right)


def signature_case(random: Random) -> Case:
    """A query, and in the lines after it headers, for one of the registrations."""
    query, headers, is_right = _signed(random, random.choice(REGISTRATIONS))
    lines = [query, *(name.lower() + b": " + value for name, value in headers)]
    return _perhaps_broken(random, b"\r\n".join(lines), is_right=is_right)


# HTTP.

_ODD_HEADERS = [
    *([(b"Connection", value)] for value in (b"keep-alive", b"Keep-Alive, TE", b"x-nothing")),
    *([(b"Connection", b"Upgrade"), (b"Upgrade", value)] for value in (b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1")),
    [
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAEAAEAAAAIAAAABAAMAAABk"),
    ],
    [(b"Upgrade", b"h2c")],
    [(b"Connection", b"upgrade")],
    [(b"TE", b"trailers"), (b"Connection", b"TE")],
    *([(name, value)] for name, value in ((b"Expect", b"100-continue"), (b"Content-Encoding", b"gzip"))),
    *([(b"Content-Type", value)] for value in (b"application/json", b"text/plain; charset=utf-16", b"")),
    *([(b"X-Forwarded-For", value)] for value in (b"203.0.113.9", b"203.0.113.9, 127.0.0.1", b"<script>")),
    [(b"Forwarded", b'for="[2001:db8::1]:80";proto=https')],
    [(b"Cookie", b"a=b"), (b"Cookie", b"c=d")],
    [(b"X-Empty", b"")],
    [(b"X-Text", "商品1".encode())],
    [(b"X-Tab", b"a\tb")],
    [(b"X-Long", b"a" * 8000)],
    [(b"Trailer", b"X-Checksum")],
    [(b"User-Agent", b"Java-http-client/17.0.9")],
    [(b"!#$%&'*+-.^_`|~", b"a name of each character that one may have")],
]


# Of a chunk's length: the oracle reads no more than 20.
_MANY_DIGITS = re.compile(rb"(\r\n0{8})0+")


def http_case(random: Random) -> Case:
    """What one client sends: one to three requests on one connection."""
    requests = [_request(random) for _ in range(random.choice((1, 1, 1, 1, 2, 3)))]
    data = b"".join(one.data for one in requests)
    case = _perhaps_broken(random, data, is_right=all(one.is_right for one in requests))
    return case._replace(data=_MANY_DIGITS.sub(rb"\1", case.data))


def _request(random: Random) -> Case:
    registration = random.choice(REGISTRATIONS)
    query, headers, is_right = _signed(random, registration)
    path = registration.url.removeprefix(_HOST).partition("?")[0].encode()
    if random.random() < 0.1:
        at = random.randrange(1, len(path))
        if path[at : at + 1].isalpha() and b"%" not in path[at - 2 : at]:
            path = path[:at] + b"%%%02x" % path[at] + path[at + 1 :]
    body = _callback_body(random)
    headers = [(b"Host", random.choice((b"callbacks.example.com", b"a:443", b"[::1]"))), *headers]
    for _ in range(random.choice((0, 0, 1, 1, 2, 4))):
        headers += random.choice(_ODD_HEADERS)
    is_chunked = random.random() < 0.4
    headers.append((b"Transfer-Encoding", b"chunked") if is_chunked else (b"Content-Length", b"%d" % len(body)))
    random.shuffle(headers)
    blank = random.choice((b"", b" ", b" ", b" ", b"\t", b"  "))
    lines = [name + b":" + blank + value + random.choice((b"", b"", b" ")) for name, value in headers]
    head = b"\r\n".join([b"POST " + path + b"?" + query + b" HTTP/1.1", *lines, b"", b""])
    return Case(head + (_chunked(random, body) if is_chunked else body), is_right and len(body) <= MAX_BODY_BYTES)


def _chunked(random: Random, body: bytes) -> bytes:
    written = b""
    while body:
        size = random.choice((1, 3, 100, 1000, 5000))
        chunk, body = body[:size], body[size:]
        form, extension = random.choice((b"%x", b"%X", b"0%x", b"000%x")), random.choice((b"", b"", b";a", b";a=b"))
        written += form % len(chunk) + extension + b"\r\n" + chunk + b"\r\n"
    trailers = random.choice((b"", b"", b"X-Checksum: 1\r\n", b"Host: b\r\nX-Hw-Mss-Time: 1\r\n"))
    return written + random.choice((b"0", b"00", b"0;a=b")) + b"\r\n" + trailers + b"\r\n"


def _callback_body(random: Random) -> bytes:
    """A body like no other, mostly of an event."""
    unique = f"{random.getrandbits(64):016x}"
    message = {"room_id": "fuzz", "job_id": unique, "reply_id": unique}
    event = json.dumps({"event_type": "REPLY_COMMAND_FINISH", "message": json.dumps(message)}).encode()
    kind = random.randrange(10)
    if kind == 0:
        return random.randbytes(random.randrange(200)) + unique.encode()
    if kind == 1:  # like a request of its own: where it ends must not be looked for in it
        return event + b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    if kind == 2:
        size = MAX_BODY_BYTES + random.choice((-1, 0, 0, 1, 2, 3000))
        return event + b" " * (size - len(event))
    return event + b" " * random.choice((0, 0, 0, 1, 700))


# Bodies.


_FIELDS = [
    *("room_id", "job_id", "scene_script_name", "shoot_script_sequence_no", "shoot_script_title", "output_url"),
    *("stream_key", "state", "reply_id", "live_id", "product_id", "product_title"),
]


def body_case(random: Random) -> Case:
    """The body of a callback."""
    if random.random() < 0.3:
        return _perhaps_broken(random, random.choice(list(SAMPLES.values())), is_right=True)
    event_type = random.choice([*SAMPLES, *SAMPLES, "ANOTHER", "", 7, None])
    message: Any = {name: _value(random, 2) for name in _FIELDS if random.random() < 0.7}
    outer: dict[str, Any] = {"event_type": event_type}
    outer["message"] = message if random.random() < 0.2 else json.dumps(message, ensure_ascii=random.random() < 0.5)
    data = json.dumps(outer, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    if random.random() < 0.05:
        data = data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
    if random.random() < 0.05:  # a key twice
        data = data[:1] + b'"event_type":"END",' + data[1:]
    return _perhaps_broken(random, data, is_right=False)


_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30),
    *("0", "7", "-1", "007", "+1", " 1", "1.5", "٣", "9" * 19, "9" * 20, "9" * 5000, "1e3"),
    *(1.5, 1e308, float("nan"), float("inf")),
    *("", "a" * 255, "a" * 256, "段" * 255, "\0", "a\0b", "\ud800", "\U0001f600", "\u202e"),
    *("CONNECTED", "CONNECTING", "END", "connected", "NEW"),
    *("Product 1", "商品1", "段落2", "rtmp://a/b?c=d", "26f065244f754b3aa853b649a21aaf66"),
]


def _value(random: Random, depth: int) -> Any:
    match random.randrange(8 if depth else 6):
        case 0 | 1 | 2:
            return random.choice(_VALUES[-10:])  # what is usual
        case 6:
            return [_value(random, depth - 1) for _ in range(random.randrange(3))]
        case 7:
            return {"a": _value(random, depth - 1)}
        case _:
            return random.choice(_VALUES)


# Forwarded headers.


def forwarded_case(random: Random) -> Case:
    """Lines of X-Forwarded-For or of Forwarded, as proxies write them."""
    name = random.choice((b"x-forwarded-for", b"forwarded"))
    lines = [
        name + b": " + b", ".join(_hop(random, name) for _ in range(random.choice((1, 1, 2, 3, 10))))
        for _ in range(random.choice((1, 1, 1, 2)))
    ]
    if random.random() < 0.1:
        lines.append(b"forwarded: for=203.0.113.77" if name != b"forwarded" else b"x-forwarded-for: 203.0.113.77")
        return _perhaps_broken(random, b"\r\n".join(lines), is_right=False)
    return _perhaps_broken(random, b"\r\n".join(lines), is_right=True)


def _hop(random: Random, name: bytes) -> bytes:
    trusted = (b"127.0.0.1", b"127.0.0.9", b"::ffff:127.0.0.2")
    address = random.choice((*trusted, *trusted, b"203.0.113.9", b"198.51.100.7", b"2001:db8::1", b"0.0.0.0"))
    if name != b"forwarded":
        return address
    is_v6 = b":" in address
    node = b"[" + address + b"]" if is_v6 else address
    if random.random() < 0.3:
        node, is_v6 = node + b":%d" % random.randrange(65536), True
    node = b'"' + node + b'"' if is_v6 or random.random() < 0.3 else node
    before = random.choice((b"", b"", b"by=10.0.0.1;", b'by="_hidden";proto=https;'))
    return (
        before
        + random.choice((b"for", b"For", b"FOR"))
        + b"="
        + node
        + random.choice((b"", b"", b";proto=https", b";host=a"))
    )
