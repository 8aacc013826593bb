from __future__ import annotations

from ipaddress import ip_network

import pytest

from receiver.addresses import client_address, client_group, parse_address

TRUSTED = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
X, F = "x-forwarded-for", "forwarded"

# The peer, the headers that came, whose request it is.
CASES: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "nobody says anything": ("127.0.0.1", [], "127.0.0.1"),
    "an untrusted peer says something": ("192.0.2.1", [(X, "198.51.100.7"), (F, "for=198.51.100.7")], "192.0.2.1"),
    "one proxy": ("127.0.0.1", [(X, "198.51.100.7")], "198.51.100.7"),
    "one proxy, forwarded": ("127.0.0.1", [(F, "for=198.51.100.7")], "198.51.100.7"),
    "the client's invention on the left": ("127.0.0.1", [(X, "203.0.113.9, 198.51.100.7")], "198.51.100.7"),
    "the client's invention in a line of its own": (
        "127.0.0.1",
        [(X, "203.0.113.9"), (X, "198.51.100.7")],
        "198.51.100.7",
    ),
    "two proxies": ("127.0.0.1", [(X, "203.0.113.9,198.51.100.7, 10.1.2.3")], "198.51.100.7"),
    "proxies alone": ("127.0.0.1", [(X, "10.0.0.2, 10.0.0.1")], "10.0.0.2"),
    "IPv6": ("127.0.0.1", [(X, "2001:db8::1")], "2001:db8::1"),
    "IPv6, forwarded with a port": ("127.0.0.1", [(F, 'For="[2001:db8::1]:4711"')], "2001:db8::1"),
    "more parameters": ("127.0.0.1", [(F, 'by=10.0.0.1;for="198.51.100.7:80";proto=https')], "198.51.100.7"),
    "forwarded by two": (
        "127.0.0.1",
        [(F, "for=203.0.113.9, for=198.51.100.7;proto=http, for=10.9.9.9")],
        "198.51.100.7",
    ),
    "IPv4 on a socket for both": ("::ffff:127.0.0.1", [(X, "::ffff:198.51.100.7")], "198.51.100.7"),
    "a proxy in IPv6": ("fd00::1", [(X, "198.51.100.7")], "198.51.100.7"),
    "both agree": ("127.0.0.1", [(X, "198.51.100.7"), (F, "for=198.51.100.7")], "198.51.100.7"),
    "both differ": ("127.0.0.1", [(X, "198.51.100.7"), (F, "for=203.0.113.9")], "127.0.0.1"),
    "unknown": ("127.0.0.1", [(F, "for=unknown")], "127.0.0.1"),
    "hidden behind a proxy": ("127.0.0.1", [(F, "for=_hidden, for=10.0.0.5")], "10.0.0.5"),
    "no address": ("127.0.0.1", [(X, "198.51.100.7, <script>")], "127.0.0.1"),
    "with a port": ("127.0.0.1", [(X, "198.51.100.7:80")], "127.0.0.1"),
    "empty": ("127.0.0.1", [(X, "")], "127.0.0.1"),
    "a comma inside quotes": ("127.0.0.1", [(F, 'for=203.0.113.9;by="a,for=198.51.100.7"')], "127.0.0.1"),
    "far too long": ("127.0.0.1", [(X, "198.51.100.7," * 1000 + "198.51.100.7")], "127.0.0.1"),
    "digits of another script": ("127.0.0.1", [(X, "198.51.100.\xb9")], "127.0.0.1"),
    "no peer": ("?", [(X, "198.51.100.7")], "?"),
}


@pytest.mark.parametrize(("peer", "headers", "client"), CASES.values(), ids=CASES)
def test_whose_request_it_is(peer: str, headers: list[tuple[str, str]], client: str) -> None:
    """Only trusted proxies are believed, and of what they pass on only the part that none but they could write."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    assert client_address(peer, raw, TRUSTED) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """By default the client is the peer."""
    assert client_address("127.0.0.1", [(b"x-forwarded-for", b"198.51.100.7")], []) == "127.0.0.1"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_what_counts_as_one_client(one: str, other: str, same: bool) -> None:  # noqa: FBT001 (a table's column)
    """An IPv4 address is one client; so is a /64 of IPv6, of which any host has all addresses."""
    assert (client_group(parse_address(one)) == client_group(parse_address(other))) is same
