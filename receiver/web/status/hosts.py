"""Under which host names the status page may be asked for: the check against DNS rebinding.

A page from elsewhere could let its own name lead here, and read what is answered: then that name stands in the request.
An address cannot be made to lead elsewhere, so any is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from receiver.addresses import parse_address

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::[0-9]{1,5})?")


def is_own_host(headers: Iterable[tuple[bytes, bytes]], names: Collection[str]) -> bool:
    """Whether the one Host header has an address, ``localhost``, or one of these names, given in lower case."""
    hosts = [value.decode("latin-1").strip().lower() for name, value in headers if name == b"host"]
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None:
        return False
    host = match["v6"] or match["name"].removesuffix(".")
    return parse_address(host) is not None or host == "localhost" or host in names
