"""Limits how many connections a listener has, and chooses which one is dropped to make room for another.

A connection is authenticated once a callback of it was accepted. Unauthenticated ones are limited for each address;
at that limit, or at the one for all, the oldest of them is evicted. Where all are authenticated, the one that has been
idle longest is. So a new callback finds room however many slow connections there are, and an authenticated connection
that is being answered is never evicted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from receiver.addresses import Network, client_group, is_trusted, parse_address
from receiver.metrics import Metrics

logger = logging.getLogger(__name__)

_PROTECTED_SECONDS = 1.0  # after the accept: by then a far client has shaken hands and sent its header


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients are allowed. `request_timeout` is in seconds; trusted proxies have no limit of their own address."""

    max_connections: int = 1024
    max_connections_per_address: int = 256
    request_timeout: float = 30
    trusted_proxies: Sequence[Network] = ()


class Limited(Protocol):
    """What the limiter needs of a connection. Times are the event loop's."""

    client_host: str
    accepted_at: float

    def drop(self, reason: str) -> None:
        """Close at once; `reason` is one of the metric's."""

    def waiting_time(self, now: float) -> float:
        """For how many seconds the client has been waited for; 0 while it waits for an answer."""

    def is_overdue(self, now: float) -> bool:
        """Whether the client has missed a deadline."""


_Connection = TypeVar("_Connection", bound=Limited)


class ConnectionLimiter(Generic[_Connection]):
    """The connections of one listener; `listener` is its name in the metrics."""

    def __init__(self, limits: Limits, listener: str, metrics: Metrics) -> None:
        self.connections: set[_Connection] = set()
        self.limits = limits
        self._unauthenticated: dict[_Connection, str] = {}  # with their groups of addresses; the oldest first
        self._by_group: dict[str, dict[_Connection, None]] = {}  # the unauthenticated ones
        self._listener = listener
        self._count = metrics.connections.labels(listener)
        self._dropped = metrics.connections_dropped_total

    def make_room(self, host: str, now: float) -> bool:
        """Evict a connection where one more from `host` would be too many; whether there is room for it now."""
        address = parse_address(host)
        same_group = self._by_group.get(client_group(address), {})
        has_room = (
            len(same_group) < self.limits.max_connections_per_address
            or is_trusted(address, self.limits.trusted_proxies)
            or _evict_oldest(same_group, now)
        ) and (
            len(self.connections) < self.limits.max_connections
            or _evict_oldest(self._unauthenticated, now)
            or self._evict_idle(now)
        )
        if not has_room:
            self.report("limit", host)
        return has_room

    def add(self, connection: _Connection) -> None:
        """Count a new connection, unauthenticated."""
        group = client_group(parse_address(connection.client_host))
        self.connections.add(connection)
        self._unauthenticated[connection] = group
        self._by_group.setdefault(group, {})[connection] = None
        self._count.inc()

    def authenticate(self, connection: _Connection) -> None:
        """A callback of `connection` was accepted."""
        group = self._unauthenticated.pop(connection, None)
        if group is None:
            return
        same_group = self._by_group[group]
        del same_group[connection]
        if not same_group:
            del self._by_group[group]

    def remove(self, connection: _Connection) -> None:
        """Count `connection` no longer; does nothing the second time."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.authenticate(connection)
            self._count.dec()

    def drop_overdue(self, now: float) -> None:
        """Drop the connections that have missed a deadline."""
        for connection in [connection for connection in self.connections if connection.is_overdue(now)]:
            connection.drop("timeout")

    def report(self, reason: str, host: str) -> None:
        """Count and log that a connection from `host` was dropped."""
        self._dropped.labels(self._listener, reason).inc()
        details = {"listener": self._listener, "reason": reason, "client": host}
        logger.warning("connection dropped", extra=details)

    def _evict_idle(self, now: float) -> bool:
        authenticated = self.connections - self._unauthenticated.keys()
        idlest = max(authenticated, key=lambda connection: connection.waiting_time(now), default=None)
        if idlest is None or not idlest.waiting_time(now):
            return False
        idlest.drop("limit")
        return True


def _evict_oldest(connections: Collection[Limited], now: float) -> bool:
    oldest = next(iter(connections), None)
    if oldest is None or now - oldest.accepted_at < _PROTECTED_SECONDS:
        return False
    oldest.drop("limit")
    return True
