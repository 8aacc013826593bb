"""URLs and keys that may have been registered in place of the configured ones, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from receiver.settings.settings import EndpointSettings
from receiver.tools.captured import Captured


class Candidate(NamedTuple):
    """A URL, and a key with its name for people."""

    url: str
    key_name: str
    key: str


def candidates(
    endpoint: EndpointSettings, endpoints: Sequence[EndpointSettings], captured: Captured
) -> Iterator[Candidate]:
    """Each combination of what goes wrong in practice, those with the fewest differences first."""
    configured, seen = urlsplit(endpoint.live_event_type_callback_url), urlsplit(captured.url)
    host, path = configured.hostname or "", configured.path
    hosts = (configured.netloc, seen.netloc, captured.host, host, f"{host}:443", f"{host}:8443")
    paths = (path, seen.path, path.rstrip("/"), path + "/", quote(path), unquote(path))
    choices: list[list[Any]] = [
        ["https", "http"],
        *(
            list(dict.fromkeys(some))
            for some in (filter(_can_be_host, hosts), paths, (configured.query, captured.own_query, ""))
        ),
        _keys(endpoint, endpoints),
    ]

    def differences(combination: tuple[Any, ...]) -> int:
        return sum(value != choice[0] for value, choice in zip(combination, choices, strict=True))

    for *parts, (key_name, key) in sorted(product(*choices), key=differences):
        yield Candidate(urlunsplit((*parts, "")), key_name, key)


def _keys(endpoint: EndpointSettings, endpoints: Sequence[EndpointSettings]) -> list[tuple[str, str]]:
    own = list(zip(("the current key", "the previous key"), endpoint.keys, strict=False))
    keys = [*own]
    keys += [(f"the key of endpoint {one.name}", key) for one in endpoints if one is not endpoint for key in one.keys]
    # As an editor or `echo` leaves it in what is pasted.
    keys += [(f"{name} and a newline", key + end) for name, key in keys for end in ("\n", "\r\n")]
    return keys + [(f"{name} and a blank", f"{key} ") for name, key in own]


def _can_be_host(text: str) -> bool:
    """Whether `text`, which anybody may have sent as the Host, makes a URL with this as its host."""
    try:
        return urlsplit(f"https://{text}/").netloc.encode() == text.encode() != b""
    except ValueError:
        return False
