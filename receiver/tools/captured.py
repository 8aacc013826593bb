"""A callback as it was captured: in a log, by a proxy, or by the receiver that has rejected it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from receiver.protocol.signature import SECRET_HEADER, SECRET_PARAMETER, TIME_HEADER, TIME_PARAMETER, AuthType


@dataclass(frozen=True, slots=True)
class Captured:
    """`url` is absolute or from the path on; `headers` have names of any case."""

    url: str
    headers: Sequence[tuple[str, str]] = ()

    @property
    def query(self) -> bytes:
        """The raw query."""
        return urlsplit(self.url).query.encode()

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as the verifier takes them."""
        return [(name.strip().lower().encode(), value.strip().encode()) for name, value in self.headers]

    @property
    def host(self) -> str:
        """The Host header, or nothing."""
        return dict(self.raw_headers).get(b"host", b"").decode()

    @property
    def own_query(self) -> str:
        """The query without the signature."""
        return "&".join(pair for pair in _pairs(self.url) if not _is_signature(pair))

    @property
    def times(self) -> Iterator[str]:
        """What stands as the signed time, in the query and in the headers."""
        parted = (pair.partition("=") for pair in _pairs(self.url))
        yield from (value for name, _, value in parted if name == TIME_PARAMETER)
        yield from (value.decode() for name, value in self.raw_headers if name == TIME_HEADER.encode())

    def signed_query(self, url: str) -> bytes:
        """The query of `url`, with the captured signature."""
        own = urlsplit(url).query
        return "&".join([*([own] if own else []), *filter(_is_signature, _pairs(self.url))]).encode()

    def is_signed(self, auth_type: AuthType) -> bool:
        """Whether there is a signature where `auth_type` has it."""
        if auth_type is AuthType.MSS_A:
            return f"{SECRET_PARAMETER}=".encode() in self.query
        return SECRET_HEADER.encode() in dict(self.raw_headers)


def _pairs(url: str) -> list[str]:
    return urlsplit(url).query.split("&")


def _is_signature(pair: str) -> bool:
    return pair.partition("=")[0] in (SECRET_PARAMETER, TIME_PARAMETER)
