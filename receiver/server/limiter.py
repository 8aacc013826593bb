"""Who may be connected to a listener, and who has to go for others to come in.

Whose callbacks have not been accepted yet is a stranger. Strangers get a bounded number of places for each address;
when these are taken, or the places for all, the one that has been here longest makes room. Where there is no stranger,
it is the client that has been silent longest. So the next callback finds a place, however many slow connections there
are, and a callback that is being answered is never dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from receiver.addresses import Network, client_group, is_trusted, parse_address
from receiver.metrics import Metrics

logger = logging.getLogger(__name__)

_PATIENCE = 1.0  # seconds that a stranger is left alone: a far client has shaken hands and sent its header by then


@dataclass(frozen=True, slots=True)
class Limits:
    """What is granted to clients. `request_timeout` is in seconds; proxies' addresses are not limited one by one."""

    max_connections: int = 1024
    max_connections_per_address: int = 256
    request_timeout: float = 30
    trusted_proxies: Sequence[Network] = ()


class Guest(Protocol):
    """A connection. `since` is when it was accepted, on the event loop's clock."""

    client_host: str
    since: float

    def drop(self, reason: str) -> None:
        """End it at once."""

    def waits(self, now: float) -> float:
        """For how many seconds its client has been waited for; 0 while the client waits for an answer."""

    def is_overdue(self, now: float) -> bool:
        """Whether its client has taken too long."""

    def finish(self, latest: float) -> None:
        """Close after the next answer, or at `latest` if no request comes."""


class Admission:
    """The places of one listener; `listener` is its name in the metrics."""

    def __init__(self, limits: Limits, listener: str, metrics: Metrics) -> None:
        self.guests: set[Guest] = set()
        self.limits = limits
        self._strangers: dict[Guest, str] = {}  # the oldest first
        self._by_address: dict[str, dict[Guest, None]] = {}
        self._listener = listener
        self._connections = metrics.connections.labels(listener)
        self._dropped = metrics.connections_dropped_total

    def has_room(self, host: str, now: float) -> bool:
        """Whether one more from `host` may come in, for which a stranger may have to go."""
        address = parse_address(host)
        own = self._by_address.get(client_group(address), {})
        room = (
            len(own) < self.limits.max_connections_per_address
            or is_trusted(address, self.limits.trusted_proxies)
            or _evict(own, now)
        ) and (
            len(self.guests) < self.limits.max_connections or _evict(self._strangers, now) or self._evict_silent(now)
        )
        if not room:
            self.report("limit", host)
        return room

    def enter(self, guest: Guest) -> None:
        """Take a place, as a stranger."""
        group = client_group(parse_address(guest.client_host))
        self.guests.add(guest)
        self._strangers[guest] = group
        self._by_address.setdefault(group, {})[guest] = None
        self._connections.inc()

    def recognize(self, guest: Guest) -> None:
        """A callback of `guest` was accepted: it is no stranger any more."""
        group = self._strangers.pop(guest, None)
        if group is None:
            return
        own = self._by_address[group]
        del own[guest]
        if not own:
            del self._by_address[group]

    def leave(self, guest: Guest) -> None:
        """Give the place back; a second time is nothing."""
        if guest in self.guests:
            self.guests.remove(guest)
            self.recognize(guest)
            self._connections.dec()

    def sweep(self, now: float) -> None:
        """Drop whoever is overdue."""
        for guest in [guest for guest in self.guests if guest.is_overdue(now)]:
            guest.drop("timeout")

    def _evict_silent(self, now: float) -> bool:
        silent = max(self.guests - self._strangers.keys(), key=lambda guest: guest.waits(now), default=None)
        if silent is None or not silent.waits(now):
            return False
        silent.drop("limit")
        return True

    def report(self, reason: str, host: str) -> None:
        """Count and log that a connection from `host` was dropped."""
        self._dropped.labels(self._listener, reason).inc()
        details = {"listener": self._listener, "reason": reason, "client": host}
        logger.warning("connection dropped", extra=details)


def _evict(strangers: dict[Guest, str] | dict[Guest, None], now: float) -> bool:
    oldest = next(iter(strangers), None)
    if oldest is None or now - oldest.since < _PATIENCE:
        return False
    oldest.drop("limit")
    return True
