"""What is right, said a second time: signatures after the vendor's document, HTTP by h11, proxies' headers by hand.

Nothing here imports the receiver. What it and this disagree about is a fault of one of them.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal
from urllib.parse import unquote_to_bytes

import h11

Headers = list[tuple[bytes, bytes]]
Verdict = Literal["accepted", "stale", "rejected"]

_SIGNED = ("secret", "time")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_FIRST_MILLISECONDS = 10**11
_YEAR_10000 = 253_402_300_800
_MOST_HEAD_BYTES = 2**17


@dataclass(frozen=True)
class Registration:
    """A registered URL: `auth_type` is the vendor's, `keys` are those that are accepted."""

    name: str
    url: str
    auth_type: str
    keys: tuple[str, ...] = ()

    @property
    def path(self) -> bytes:
        """The path, percent-decoded."""
        return unquote_to_bytes("/" + self.url.partition("://")[2].partition("?")[0].partition("/")[2])

    @property
    def query(self) -> bytes:
        """The URL's own query."""
        return self.url.partition("?")[2].encode()


def signed_texts(url: str, time_text: str) -> Iterator[bytes]:
    """Each text that "URI + hwTime" may stand for: with the scheme or not, sorted or not, hex or decimal."""
    address, mark, query = url.partition("?")
    for with_scheme, is_sorted, decimal in product((False, True), (True, False), (False, True)):
        first = address if with_scheme else address.split("://", 1)[1]
        pairs = query.split("&")
        if is_sorted:
            pairs.sort(key=lambda pair: pair.split("=", 1)[0])
        time = str(int(time_text, 16)) if decimal else time_text
        yield (first + mark + "&".join(pairs) + time).encode()


def secrets(registration: Registration, time_text: str) -> list[str]:
    """Every hwSecret that the holder of a key may send with this hwTime."""
    return [
        hmac.digest(key.encode(), text, "sha256").hex()
        for key in registration.keys
        for text in signed_texts(registration.url, time_text)
    ]


def judge(registration: Registration, query: bytes, headers: Headers, now: float, tolerance: float) -> Verdict:
    """Whether a request was signed by the holder of a key, within `tolerance` seconds of `now`."""
    own: list[bytes] = []
    in_query: dict[bytes, list[bytes]] = {b"hwsecret": [], b"hwtime": []}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        meant = unquote_to_bytes(name).lower()
        if meant in in_query:
            # Under another spelling it is something that no sender writes.
            in_query[meant].append(value if name in (b"hwSecret", b"hwTime") else b"no hex")
        else:
            own.append(pair)
    is_too_long = len(query) > 3 * len(registration.query) + 512  # percent-encoding makes three of one
    if is_too_long or _parameters(own) != _parameters(registration.query.split(b"&")):
        return "rejected"
    if registration.auth_type == "NONE":
        return "accepted"
    secret, time = in_query.values()
    if registration.auth_type == "MSS_A_HEAD":
        secret, time = ([value for name, value in headers if name == f"x-hw-mss-{one}".encode()] for one in _SIGNED)
    sent_at = _sent_at(registration, secret, time)
    if sent_at is None:
        return "rejected"
    return "accepted" if abs(now - sent_at) <= tolerance else "stale"


def _sent_at(registration: Registration, secret: list[bytes], time: list[bytes]) -> float | None:
    """The signed time, in POSIX seconds; None where no holder of a key has signed it."""
    if len(secret) != 1 or len(time) != 1 or not _is_hex(secret[0], 64, 64) or not _is_hex(time[0], 1, 16):
        return None
    if secret[0].decode().lower() not in secrets(registration, time[0].decode()):
        return None
    number = int(time[0], 16)
    seconds = number / 1000 if number >= _FIRST_MILLISECONDS else number
    return seconds if seconds < _YEAR_10000 else None


def _parameters(pairs: list[bytes]) -> list[tuple[bytes, bytes]]:
    parted = (pair.partition(b"=") for pair in pairs if pair)
    return sorted((_decoded(name), _decoded(value)) for name, _, value in parted)


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _is_hex(text: bytes, least: int, most: int) -> bool:
    return least <= len(text) <= most and set(text) <= _HEX


@dataclass(frozen=True)
class Request:
    """A whole request."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    @property
    def path(self) -> bytes:
        """The path, percent-decoded."""
        return unquote_to_bytes(self._origin.partition(b"?")[0])

    @property
    def query(self) -> bytes:
        """The query as it came."""
        return self._origin.partition(b"?")[2]

    @property
    def _origin(self) -> bytes:
        """The target without a scheme and host before it, and without a fragment behind it."""
        target = self.target.partition(b"#")[0]
        if target[:1] != b"/" and b"://" in target.partition(b"?")[0]:
            return b"/" + target.partition(b"://")[2].partition(b"/")[2]
        return target


def read_requests(raw: bytes) -> tuple[list[Request], bool]:
    """The whole requests that `raw` begins with, and whether nothing else comes after the last one."""
    found: list[Request] = []
    while raw := raw.lstrip(b"\r\n"):  # empty lines before a request are to be passed over (RFC 9112, 2.2)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD_BYTES)
        connection.receive_data(raw)
        try:
            request = _read_request(connection)
        except h11.RemoteProtocolError:
            request = None
        if request is None:
            return found, False
        found.append(request)
        if connection.their_state is h11.MUST_CLOSE:  # it said so, and what comes behind it is not looked at
            return found, True
        raw = connection.trailing_data[0]
    return found, True


def _read_request(connection: h11.Connection) -> Request | None:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return Request(head.method, head.target, list(head.headers), body)
        else:
            return None


def chain(peer: str, hops: Iterable[str | None], trusted: str) -> list[str]:
    """Who may be shown as the client: the peer, then each hop from the right that only a `trusted` proxy can name."""
    found = [_address(peer)]
    for hop in reversed(list(hops)):
        try:
            if hop is None or ipaddress.ip_address(found[-1]) not in ipaddress.ip_network(trusted):
                break
            found.append(_address(hop))
        except ValueError:
            break
    return found


def forwarded_hops(text: str) -> list[str | None]:
    """The addresses of a Forwarded header (RFC 7239), None for a hop that has another name or none.

    A comma in quotes parts it too. Who opens quotes and does not end them must not hide what the proxy adds behind.
    """
    hops: list[str | None] = []
    for element in text.split(","):
        values = [
            value
            for name, _, value in (pair.partition("=") for pair in element.split(";") if "=" in pair)
            if _is_for(name)
        ]
        node = values[-1].strip().strip('"') if values else ""
        if node.startswith("["):
            node = node[1:].partition("]")[0]
        elif node.count(":") == 1:
            node = node.partition(":")[0]
        hops.append(node or None)
    return hops


def _is_for(name: str) -> bool:
    return name.strip().lower() == "for"


def _address(text: str) -> str:
    address = ipaddress.ip_address(text.strip().partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)
