"""The client's address: the peer's or, where the peer is a trusted proxy, the one that the proxy names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_FORWARDED_FOR = re.compile(
    r'\s*(?:[A-Za-z]+=(?:[^\s;,"]*|"[^"]*");)*for=("[^"]*"|[^\s;,"]+)(?:;[^,]*)?\s*', re.IGNORECASE
)
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
_MAX_CHARACTERS = 2048  # of a header: proxies write less


def parse_address(text: str) -> Address | None:
    """An IP address, or none. IPv4 inside IPv6, as a socket that listens on both shows it, is IPv4."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_trusted(address: Address | None, trusted: Sequence[Network]) -> bool:
    """Whether `address` is in one of the networks."""
    return address is not None and any(address in network for network in trusted)


def client_group(address: Address | None) -> str:
    """What counts as one client: an IPv4 address, or the /64 network that any IPv6 host has to itself."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]) -> str:
    """The client's address, for logs.

    It is the peer's own, unless the peer is trusted: then it is the rightmost one in Forwarded (RFC 7239) or
    X-Forwarded-For that is not. Anybody can write what stands left of that. Where both headers are there and differ,
    one of them is the client's invention, so neither counts.
    """
    address = parse_address(peer)
    if not is_trusted(address, trusted):
        return peer
    values: dict[bytes, list[str]] = {b"forwarded": [], b"x-forwarded-for": []}
    for name, value in headers:
        if name in values:
            values[name].append(value.decode("latin-1"))
    found = {_rightmost(str(address), _hops(name, ",".join(lines)), trusted) for name, lines in values.items() if lines}
    return found.pop() if len(found) == 1 else str(address)


def _hops(name: bytes, text: str) -> list[Address | None]:
    """The addresses from left to right; none where something else stands."""
    if len(text) > _MAX_CHARACTERS:
        return []
    if name == b"x-forwarded-for":
        return [parse_address(part.strip()) for part in text.split(",")]
    hops: list[Address | None] = []
    for part in text.split(","):  # a comma inside quotes makes two parts that match nothing
        element = _FORWARDED_FOR.fullmatch(part)
        node = _WITH_PORT.fullmatch(element[1].strip('"')) if element else None
        hops.append(parse_address(node[1] or node[2]) if node else None)
    return hops


def _rightmost(peer: str, hops: list[Address | None], trusted: Sequence[Network]) -> str:
    last = peer
    for hop in reversed(hops):
        if hop is None:
            return last
        last = str(hop)
        if not is_trusted(hop, trusted):
            return last
    return last
